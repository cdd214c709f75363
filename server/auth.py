"""Keys: who may do what with which knowledge base.

A key is 32 random bytes; only their SHA-256 is kept. That is enough for what can't be guessed: a
slow hash protects passwords, which can.
"""

import hmac
import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from ingest.errors import UserError
from server.database import Database
from server.schemas import NAME, Scope

RANKS: dict[Scope, int] = {"read": 1, "write": 2, "admin": 3}
"""What a larger one may, a smaller one may not; admin includes write, write includes read."""

ANY = "*"
_TOKEN = re.compile(r"rag-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Grant:
    """A scope for one knowledge base, or for all and for those to come (`*`)."""

    scope: Scope
    base: str = ANY

    def __str__(self) -> str:
        return self.scope if self.base == ANY else f"{self.scope}:{self.base}"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `id` is empty for a person at this machine where no keys are in use."""

    id: str
    name: str
    grants: tuple[Grant, ...]

    def may(self, scope: Scope, base: str | None = None) -> bool:
        """Whether it has `scope` for a knowledge base; None: for the server as a whole."""
        return any(
            RANKS[grant.scope] >= RANKS[scope] and grant.base in (ANY, base)
            for grant in self.grants
        )

    def scopes(self, base: str | None = None) -> list[Scope]:
        return [scope for scope in RANKS if self.may(scope, base)]

    @property
    def highest(self) -> list[Scope]:
        """What it may somewhere."""
        most = max((RANKS[grant.scope] for grant in self.grants), default=0)
        return [scope for scope, rank in RANKS.items() if rank <= most]


LOCAL = Principal("", "", (Grant("admin"),))


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; its secret is not."""

    id: str
    name: str
    grants: tuple[Grant, ...]
    created: float
    revoked: float | None


def grant(text: str) -> Grant:
    """`read`, or `read:laws` for one knowledge base."""
    scope, colon, base = text.partition(":")
    if scope not in RANKS or (colon and not re.fullmatch(NAME, base)):
        raise UserError(
            "{text} is no scope; write read, write or admin, with :NAME for one knowledge base",
            text=text,
        )
    return Grant(scope, base or ANY)


class Keys:
    """The keys in the database. Every check looks there, so that a revoked key ends at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def in_use(self) -> bool:
        """Whether keys are asked for: from the first one on, also when all are revoked."""
        return self._database.row("SELECT 1 FROM keys LIMIT 1") is not None

    @property
    def usable(self) -> bool:
        """Whether there is a key that is not revoked."""
        return self._database.row("SELECT 1 FROM keys WHERE revoked IS NULL LIMIT 1") is not None

    def create(self, name: str, grants: Sequence[Grant]) -> str:
        """A new key, which is never shown again."""
        if not name.strip() or len(name) > 100:
            raise UserError(
                "a key's name has 1 to 100 characters, not {name_count}", name_count=len(name)
            )
        if not grants:
            raise UserError("a key needs a scope")
        identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        row = (
            identity,
            name.strip(),
            _digest(secret),
            json.dumps([*map(str, grants)]),
            time.time(),
        )
        with self._database.change() as sql:
            sql.execute(
                "INSERT INTO keys (id, name, digest, grants, created) VALUES (?, ?, ?, ?, ?)", row
            )
        return f"rag-{identity}-{secret}"

    def every(self) -> list[Key]:
        rows = self._database.rows("SELECT * FROM keys ORDER BY created")
        return [
            Key(row["id"], row["name"], _grants(row["grants"]), row["created"], row["revoked"])
            for row in rows
        ]

    def revoke(self, which: str) -> Key:
        """End a key, named by its id, or by its name where one usable key has it."""
        found = [key for key in self.every() if which in (key.id, key.name) and key.revoked is None]
        if not found:
            raise UserError(
                "no usable key is called {which}; rag keys list shows them", which=which
            )
        if len(found) > 1:
            raise UserError(
                "{count} keys are called {which}; name one by its id: {ids}",
                count=len(found),
                which=which,
                ids=", ".join(key.id for key in found),
            )
        with self._database.change() as sql:
            sql.execute("UPDATE keys SET revoked = ? WHERE id = ?", (time.time(), found[0].id))
        return found[0]

    def check(self, token: str) -> Principal | None:
        """Who a key belongs to; None for one that is unknown, wrong or revoked."""
        match = _TOKEN.fullmatch(token)
        row = match and self._database.row(
            "SELECT name, digest, grants FROM keys WHERE id = ? AND revoked IS NULL", (match[1],)
        )
        # An unknown id takes the same steps as a wrong secret.
        kept = row["digest"] if row else bytes(32)
        right = hmac.compare_digest(kept, _digest(match[2] if match else ""))
        if not (match and row and right):
            return None
        return Principal(match[1], row["name"], _grants(row["grants"]))


def _digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()


def _grants(text: str) -> tuple[Grant, ...]:
    return tuple(grant(each) for each in json.loads(text))
