"""Errors that a person can act on; everything else is a bug and keeps its traceback."""


class UserError(Exception):
    """A mistake or circumstance outside the code, said in one line that holds the way out.

    `zh` is the same line in Chinese. The command line prints the one of the reader's language and
    exits with 1; a server maps it to a 4xx answer.
    """

    def __init__(self, message: str, *, zh: str = "") -> None:
        super().__init__(message)
        self.zh = zh or message


class Unreadable(UserError):
    """A file that can't become text (encrypted, truncated, not text, too large, unknown format)."""


class Mismatch(UserError):
    """A knowledge base that another embedder or a newer version wrote."""


class Busy(UserError):
    """Another process writes this knowledge base."""
