"""`rag keys`: who may use the server."""

from contextlib import closing
from time import localtime, strftime
from typing import TYPE_CHECKING

import typer

from rag.cli.console import note_message, out, out_json, out_message, say, table
from rag.cli.options import JSON, argument, option, with_options
from rag.cli.paths import data_home

if TYPE_CHECKING:
    from server.database import Database

app = typer.Typer(
    help=say("Create, list and revoke keys of the server."),
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _database() -> "Database":
    from server.database import server_database

    return server_database(data_home() / ".server")


@app.command()
@with_options("A new key; it is shown this once.")
def create(
    name: str = argument("", "Whose it is."),
    scope: list[str] = option(
        "--scope SCOPE[:KB]",
        "read, write or admin; with :NAME for one knowledge base. Can be repeated.",
        default=...,
    ),
) -> None:
    from server.auth import Keys, parse_grant

    with closing(_database()) as database:
        keys = Keys(database)
        first = not keys.in_use
        out(keys.create(name, [parse_grant(each) for each in scope]))
    note_message("Keep it: only its hash is stored.")
    if first:
        note_message("From now on every request needs a key, from this machine too.")


@app.command("list")
@with_options("All keys, without their secrets.")
def list_(as_json: bool = JSON) -> None:
    from server.auth import Keys

    with closing(_database()) as database:
        keys = [
            {"id": key.id, "name": key.name, "scopes": [*map(str, key.grants)],
             "created": key.created, "revoked": key.revoked}
            for key in Keys(database).all()
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
@with_options("End a key, at once.")
def revoke(key: str = argument("", "Its id or name.")) -> None:
    from server.auth import Keys

    with closing(_database()) as database:
        principal = Keys(database).revoke(key)
    out_message("revoked {id} ({name})", id=principal.id, name=principal.name)


def _time(seconds: float | None) -> str:
    return strftime("%Y-%m-%d %H:%M", localtime(seconds)) if seconds else ""
