"""`rag keys`: who may use the server."""

from contextlib import closing
from time import localtime, strftime
from typing import TYPE_CHECKING, Annotated

import typer

from rag.cli.console import note, out, out_json, say, table
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


@app.command(help=say("A new key; it is shown this once."))
def create(
    name: Annotated[str, typer.Argument(help=say("Whose it is."))],
    scope: Annotated[
        list[str],
        typer.Option(
            "--scope",
            metavar="SCOPE[:KB]",
            help=say("read, write or admin; with :NAME for one knowledge base. Can be repeated."),
        ),
    ],
) -> None:
    from server.auth import Keys, parse_grant

    with closing(_database()) as database:
        keys = Keys(database)
        first = not keys.in_use
        out(keys.create(name, [parse_grant(each) for each in scope]))
    note(say("Keep it: only its hash is stored."))
    if first:
        note(say("From now on every request needs a key, from this machine too."))


@app.command("list", help=say("All keys, without their secrets."))
def list_(
    as_json: Annotated[bool, typer.Option("--json", help=say("One JSON value."))] = False,
) -> None:
    from server.auth import Keys

    with closing(_database()) as database:
        keys = Keys(database).all()
    if as_json:
        out_json(
            [
                {
                    "id": key.id,
                    "name": key.name,
                    "scopes": [*map(str, key.grants)],
                    "created": key.created,
                    "revoked": key.revoked,
                }
                for key in keys
            ]
        )
        return
    if not keys:
        note(say("None yet; make one with: rag keys create NAME --scope read"))  # fmt: skip
        return
    columns = ["id", say("name"), say("scopes"), say("created"),
               say("revoked")]  # fmt: skip
    table(
        "",
        columns,
        [
            (
                key.id,
                key.name,
                ", ".join(map(str, key.grants)),
                _time(key.created),
                _time(key.revoked),
            )
            for key in keys
        ],
    )


@app.command(help=say("End a key, at once."))
def revoke(key: Annotated[str, typer.Argument(help=say("Its id or name."))]) -> None:
    from server.auth import Keys

    with closing(_database()) as database:
        ended = Keys(database).revoke(key)
    out(say("revoked {id} ({name})", id=ended.id, name=ended.name))


def _time(seconds: float | None) -> str:
    return strftime("%Y-%m-%d %H:%M", localtime(seconds)) if seconds else ""
