"""Errors that a person can act on; everything else is a bug and keeps its traceback."""

from collections.abc import Callable
from typing import Any, LiteralString

from ingest.i18n import Translatable


class UserError(Exception):
    """A mistake or circumstance outside the code, with a message of one line that has the way out.

    `str(error)` is the message in English. The command line prints it in the reader's language and
    exits with 1; a server maps it to a 4xx answer.
    """

    def __init__(self, template: LiteralString | Translatable, /, **fields: object) -> None:
        self.message = Translatable.of(template, fields)
        super().__init__(str(self.message))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.message, vars(self))

    def replace_fields(self, change: Callable[[Any], object]) -> None:
        """Replace the value of each field of the message by `change(value)`."""
        self.message = self.message.replace_fields(change)
        self.args = (str(self.message),)


class Unreadable(UserError):
    """A file that can't become text (encrypted, truncated, not text, too large, unknown format)."""


class Mismatch(UserError):
    """A knowledge base that another embedder or a newer version wrote."""


class Absent(UserError):
    """There is no knowledge base at this path or address."""


class Busy(UserError):
    """Another process writes this knowledge base."""


class Away(UserError):
    """The server of a knowledge base is not available, or refuses a request."""


def _restored(kind: type[UserError], message: Translatable, values: dict[str, Any]) -> UserError:
    """An error that was copied, or that came from a Ray worker."""
    error = kind.__new__(kind)
    error.args = (str(message),)
    vars(error).update(values)
    return error
