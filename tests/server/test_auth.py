"""Keys: random, hashed, scoped, revoked at once."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ingest.errors import UserError
from server.auth import Grant, Keys, Principal, parse_grant
from server.database import Database, server_database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(server_database(tmp_path)) as opened:
        yield opened


@pytest.fixture
def keys(database: Database) -> Keys:
    return Keys(database)


def test_a_key_authenticates_until_it_is_revoked(keys: Keys) -> None:
    token = keys.create("张三", [Grant("read", "laws")])
    who = keys.authenticate(token)
    assert who
    assert who.name == "张三"
    assert keys.revoke("张三").id == who.id
    assert keys.authenticate(token) is None
    assert keys.in_use  # an end to the last key opens nothing
    assert not keys.usable


def test_a_key_with_one_wrong_character_is_rejected(keys: Keys) -> None:
    token = keys.create("a", [Grant("admin")])
    for at in range(len(token)):
        other = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        assert keys.authenticate(other) is None
    for other in ("", "rag-", token[:-1], token + "A", token.upper(), "x" * 10_000):
        assert keys.authenticate(other) is None


def test_the_database_has_no_secret_and_two_keys_share_nothing(keys: Keys, tmp_path: Path) -> None:
    first, second = (keys.create("same name", [Grant("read")]) for _ in range(2))
    secret = first.rpartition("-")[2] if "-" not in first[17:] else first[17:]
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in content
    assert len(set(first) & set(second)) < len(first)
    assert first[4:16] != second[4:16]
    assert oct((tmp_path / "server.sqlite").stat().st_mode)[-2:] == "00"


@pytest.mark.parametrize(
    ("grants", "scope", "base", "may"),
    [
        (["read"], "read", "laws", True),
        (["read"], "write", "laws", False),
        (["write"], "read", "laws", True),
        (["admin"], "admin", None, True),
        (["admin:laws"], "admin", "laws", True),
        (["admin:laws"], "admin", None, False),
        (["admin:laws"], "read", "law", False),
        (["read", "write:laws"], "write", "laws", True),
        (["read", "write:laws"], "write", "other", False),
    ],
)
def test_a_scope_includes_lower_scopes_of_the_same_base(
    grants: list[str], scope: str, base: str | None, may: bool
) -> None:
    who = Principal("x", "x", tuple(map(parse_grant, grants)))
    assert who.may(scope, base) is may  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "root", "read:", "read:../x", "read:a b", "READ"])
def test_an_unknown_scope_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match="scope"):
        parse_grant(text)


def test_of_two_keys_with_one_name_each_is_revoked_by_id(keys: Keys) -> None:
    for _ in range(2):
        keys.create("ci", [Grant("read")])
    with pytest.raises(UserError, match="2 keys are called ci"):
        keys.revoke("ci")
    keys.revoke(keys.all()[0].id)
    keys.revoke("ci")
    with pytest.raises(UserError, match="no usable key"):
        keys.revoke("ci")
