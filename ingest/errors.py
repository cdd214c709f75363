"""Errors that a person can act on; everything else is a bug and keeps its traceback."""

import re


class UserError(Exception):
    """A mistake or circumstance outside the code, said in one line that holds the way out.

    `zh` is the same line in Chinese. The command line prints the one of the reader's language and
    exits with 1; a server maps it to a 4xx answer.
    """

    def __init__(self, message: str, *, zh: str = "") -> None:
        super().__init__(readable(message))
        self.zh = readable(zh or message)


class Unreadable(UserError):
    """A file that can't become text (encrypted, truncated, not text, too large, unknown format)."""


class Mismatch(UserError):
    """A knowledge base that another embedder or a newer version wrote."""


class Absent(UserError):
    """There is no knowledge base at a place."""


class Busy(UserError):
    """Another process writes this knowledge base."""


class Away(UserError):
    """The server that keeps a knowledge base does not do what it is asked."""


def readable(text: str) -> str:
    """Text that holds names of files, as UTF-8 can hold it: bytes that are none become `\\xba`."""
    return re.sub("[\ud800-\udfff]", lambda lone: rf"\x{ord(lone[0]) & 0xFF:02x}", text)
