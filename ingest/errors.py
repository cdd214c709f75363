"""Errors that a person can act on; everything else is a bug and keeps its traceback."""


class UserError(Exception):
    """A mistake or circumstance outside the code, said in one line that holds the way out.

    The command line prints it and exits with 1; a server maps it to a 4xx answer.
    """


class Unreadable(UserError):
    """A file that can't become text (encrypted, truncated, not text, too large, unknown format)."""


class Mismatch(UserError):
    """A knowledge base that another embedder or a newer version wrote."""


class Busy(UserError):
    """Another process writes this knowledge base."""
