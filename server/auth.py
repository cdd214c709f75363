"""API keys and what they may do with which knowledge base.

A key is 32 random bytes, of which only the SHA-256 is stored. A slow hash is not needed, since a
random key, unlike a password, can't be guessed.
"""

import hmac
import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from sqlite3 import Row

from ingest.errors import UserError
from server.database import Database
from server.schemas import NAME_PATTERN, KeyScope

RANKS: dict[KeyScope, int] = {"read": 1, "write": 2, "admin": 3}
"""admin includes write, and write includes read."""

ANY = "*"
_TOKEN = re.compile(r"rag-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Grant:
    """A scope for one knowledge base, or for all present and future ones (`*`)."""

    scope: KeyScope
    base: str = ANY

    def __str__(self) -> str:
        return self.scope if self.base == ANY else f"{self.scope}:{self.base}"


@dataclass(frozen=True, slots=True)
class Principal:
    """The owner of a key. `id` is empty for callers on this machine if no keys are in use."""

    id: str
    name: str
    grants: tuple[Grant, ...]
    created: float = 0.0
    revoked: float | None = None

    def may(self, scope: KeyScope, base: str | None = None) -> bool:
        """Whether it has `scope` for a knowledge base, or, with None, for the whole server."""
        return any(RANKS[grant.scope] >= RANKS[scope] and grant.base in (ANY, base) for grant in self.grants)

    def scopes(self, base: str | None = None) -> list[KeyScope]:
        return [scope for scope in RANKS if self.may(scope, base)]

    @property
    def highest(self) -> list[KeyScope]:
        """The scopes that it has for at least one knowledge base."""
        most = max((RANKS[grant.scope] for grant in self.grants), default=0)
        return [scope for scope, rank in RANKS.items() if rank <= most]


LOCAL = Principal("", "", (Grant("admin"),))


def parse_grant(text: str) -> Grant:
    """`read`, or `read:laws` for one knowledge base. Raises `UserError`."""
    scope, colon, base = text.partition(":")
    if scope not in RANKS or (colon and not re.fullmatch(NAME_PATTERN, base)):
        raise UserError(
            "{text} is not a valid scope; use read, write or admin, with :NAME for one knowledge base",
            text=text,
        )
    return Grant(scope, base or ANY)


class Keys:
    """The keys in the database, which every request reads: a revocation takes effect at once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def in_use(self) -> bool:
        """Whether requests need a key: once there is one, even if all are revoked."""
        return self._database.row("SELECT 1 FROM keys LIMIT 1") is not None

    @property
    def usable(self) -> bool:
        """Whether there is a key that is not revoked."""
        return self._database.row("SELECT 1 FROM keys WHERE revoked IS NULL LIMIT 1") is not None

    def create(self, name: str, grants: Sequence[Grant]) -> str:
        """Create a key; returns its only plain-text copy."""
        if not name.strip() or len(name) > 100:
            raise UserError("a key's name has 1 to 100 characters, not {length}", length=len(name))
        if not grants:
            raise UserError("a key needs a scope")
        identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        digest, scopes = sha256(secret.encode()).digest(), json.dumps([*map(str, grants)])
        row = identity, name.strip(), digest, scopes, time.time()
        query = "INSERT INTO keys (id, name, digest, grants, created) VALUES (?, ?, ?, ?, ?)"
        self._database.execute(query, row)
        return f"rag-{identity}-{secret}"

    def all(self) -> list[Principal]:
        return [*map(_principal, self._database.rows("SELECT * FROM keys ORDER BY created"))]

    def revoke(self, which: str) -> Principal:
        """Revoke a key by its id, or by its name if only one usable key has it."""
        found = [key for key in self.all() if which in (key.id, key.name) and key.revoked is None]
        if not found:
            raise UserError("no usable key is called {which}; rag keys list shows them", which=which)
        if len(found) > 1:
            raise UserError(
                "{count} keys are called {which}; name one by its id: {ids}",
                count=len(found), which=which, ids=[key.id for key in found],
            )  # fmt: skip
        query = "UPDATE keys SET revoked = ? WHERE id = ?"
        self._database.execute(query, (time.time(), found[0].id))
        return found[0]

    def authenticate(self, token: str) -> Principal | None:
        """The owner of a key; None if it is unknown, wrong or revoked."""
        match = _TOKEN.fullmatch(token)
        row = match and self._database.row("SELECT * FROM keys WHERE id = ? AND revoked IS NULL", (match[1],))
        # An unknown id takes the same steps as a wrong secret.
        digest = sha256((match[2] if match else "").encode()).digest()
        equal = hmac.compare_digest(row["digest"] if row else bytes(32), digest)
        return _principal(row) if row and equal else None


def _principal(row: Row) -> Principal:
    grants = tuple(map(parse_grant, json.loads(row["grants"])))
    return Principal(row["id"], row["name"], grants, row["created"], row["revoked"])
