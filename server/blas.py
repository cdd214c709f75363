"""Products of matrices on one thread."""

from threadpoolctl import threadpool_limits


def on_one_thread() -> None:
    """For this process, from now on. Questions share the cores out by themselves, where teams of
    threads for each product would only wait for one another; and whoever retrieves again gets the
    same scores to the bit, which another number of threads might sum up differently."""
    threadpool_limits(1, user_api="blas")
