"""`rag keys`: who may use the server."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from time import localtime, strftime
from typing import TYPE_CHECKING

import typer

from rag.cli.console import note_message, out, out_json, out_message, say, table
from rag.cli.options import JSON, argument, data_home, option, with_options

if TYPE_CHECKING:
    from server.auth import Keys

app = typer.Typer(
    help=say("Create, list and revoke keys of the server."), no_args_is_help=True, rich_markup_mode=None
)


@contextmanager
def _open_keys() -> "Iterator[Keys]":
    from server.auth import Keys
    from server.database import server_database

    with closing(server_database(data_home() / ".server")) as database:
        yield Keys(database)


@app.command()
@with_options("Create a key; it is shown only once.")
def create(
    name: str = argument("", "Name of the key."),
    scope: list[str] = option(
        "--scope SCOPE[:KB]",
        "read, write or admin; with :NAME for one knowledge base. Can be repeated.",
        default=...,
    ),
) -> None:
    from rag.config import is_knowledge_base
    from server.auth import ANY, parse_grant

    grants = [parse_grant(each) for each in scope]
    with _open_keys() as keys:
        first, same = not keys.in_use, [key.id for key in keys.all() if key.name == name.strip()]
        out(keys.create(name, grants))
    if same:
        note_message("{name} is the name of other keys too: {ids}; revoke one by its id", name=name, ids=same)
    for grant in grants:
        if grant.base != ANY and not is_knowledge_base(data_home() / grant.base):
            note_message(
                "there is no knowledge base {base} yet; the key is for one of this name", base=grant.base
            )
    note_message("Keep it: only its hash is stored.")
    if first:
        note_message("From now on every request needs a key, from this machine too.")


@app.command("list")
@with_options("List all keys, without their secrets.")
def list_(as_json: bool = JSON) -> None:
    with _open_keys() as stored:
        keys = [
            {"id": key.id, "name": key.name, "scopes": [*map(str, key.grants)],
             "created": key.created, "revoked": key.revoked}
            for key in stored.all()
        ]  # fmt: skip
    if as_json:
        out_json(keys)
    elif not keys:
        note_message("None yet; make one with: rag keys create NAME --scope read")
    else:
        columns = ["id", say("name"), say("scopes"), say("created"), say("revoked")]
        rows = [
            (key["id"], key["name"], ", ".join(key["scopes"]),
             _time(key["created"]), _time(key["revoked"]))
            for key in keys
        ]  # fmt: skip
        table("", columns, rows)


@app.command()
@with_options("Revoke a key; it takes effect immediately.")
def revoke(key: str = argument("", "Id or name of the key.")) -> None:
    with _open_keys() as keys:
        principal = keys.revoke(key)
    out_message("revoked {id} ({name})", id=principal.id, name=principal.name)


def _time(seconds: float | None) -> str:
    return strftime("%Y-%m-%d %H:%M", localtime(seconds)) if seconds else ""
