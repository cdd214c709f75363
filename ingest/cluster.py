"""A Ray cluster for the time of a run: one that is there, or this machine alone.

Ray carries objects pickled between its processes, which trust each other. One that is started here
listens on the loopback, wants a token that is made anew each time, shows no dashboard, tells nobody
that it is used and leaves nothing behind.
"""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from ingest.errors import UserError

LOCAL = "local"
"""The address of a cluster that is started for the run, on this machine."""

STORE_BYTES = 500_000_000  # of memory for objects on their way; what is more goes to disk
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # of what it writes to our standard output
}


@contextmanager
def cluster(address: str = LOCAL, *, workers: int | None = None) -> Iterator[int]:
    """Connects to the cluster at `address`, or starts one; gives how many workers it has room for.

    There is room for one on every core; `workers` is how many are wanted at most. Raises `UserError`
    where no cluster answers.
    """
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS is {address}, a client's; run this on a machine of the cluster, with "
            "RAY_ADDRESS=auto",
            zh=f"RAY_ADDRESS 为 {address}，是客户端地址；请在集群的机器上运行，并设 RAY_ADDRESS=auto",
        )
    with TemporaryDirectory(prefix="rag-") as folder:
        told: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if address == LOCAL:
            told |= {"num_cpus": workers or len(os.sched_getaffinity(0)), "_temp_dir": folder}
            told |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
        with _environment(_alone(folder) if address == LOCAL else QUIET):
            import ray

            try:
                _reach(address)
                # Workers import from this process's current folder first: not from the user's.
                with _silence(), chdir(folder):
                    ray.init(address, **told)
            except (OSError, RuntimeError, ValueError) as error:
                why = str(error).strip().partition("\n")[0]
                raise UserError(
                    f"no Ray cluster answers at {address} ({why}); check RAY_ADDRESS, or unset it "
                    "to use this machine alone",
                    zh=f"{address} 没有可用的 Ray 集群（{why}）；请检查 RAY_ADDRESS，"
                    "或取消该变量，只用本机",
                ) from error
            try:
                room = int(ray.cluster_resources().get("CPU", 1))
                yield max(1, min(room, workers or room))
            finally:
                ray.shutdown()


def _reach(address: str) -> None:
    """Raises `OSError` at once where nobody listens, for which Ray would wait minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host, int(port)), timeout=10):
            pass


def _alone(folder: str) -> dict[str, str]:
    """What Ray takes from the environment only, for a cluster of this machine in `folder`."""
    return QUIET | {
        # It listens on the loopback where it knows no other machines; 127.0.0.1 itself it replaces.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "TMPDIR": folder,  # workers are killed at the end, and leave their folders
    }


@contextmanager
def _environment(told: dict[str, str]) -> Iterator[None]:
    """`told` in the environment of this process and of those it starts, until the end."""
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing on standard error: Ray's first line there says that it is going to be quiet."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
