"""Mistakes that have a status of their own."""

from ingest.errors import UserError


class Unknown(UserError):
    """There is no such knowledge base, document, job or answer."""


class Taken(UserError):
    """There is one of that name already."""


class Unfit(UserError):
    """What is wanted does not fit the knowledge base or the server as they are."""


def no_base(name: str) -> Unknown:
    return Unknown(f"there is no knowledge base {name[:80]}", zh=f"没有知识库 {name[:80]}")
