"""`milvus://host:19530/laws`: where a knowledge base is on a Milvus server."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from ingest.errors import UserError

SCHEMES = {"milvus": "http", "milvus+tls": "https"}
"""Of an address -> of the client's own URI."""

PORT = 19530
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")  # Milvus takes 255; ours add a suffix
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Address:
    """A knowledge base on a server. Those of several tenants share collections."""

    scheme: str
    host: str
    port: int
    name: str
    database: str = ""
    tenant: str = ""

    @property
    def uri(self) -> str:
        """As the client wants it."""
        return f"{SCHEMES[self.scheme]}://{self._door}"

    @property
    def _door(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        database = f"{self.database}/" if self.database else ""
        tenant = f"?tenant={self.tenant}" if self.tenant else ""
        return f"{self.scheme}://{self._door}/{database}{self.name}{tenant}"


def parse_address(text: str) -> Address:
    """`milvus[+tls]://host[:port]/[database/]name[?tenant=t]`. Raises `UserError` for anything else.

    A key is not part of it: MILVUS_TOKEN in the environment is.
    """
    try:
        parts = urlsplit(text)
        port = parts.port or PORT
    except ValueError:
        raise _refused(text, "its host or port can't be read", "主机或端口无法识别") from None
    names = parts.path.removeprefix("/").split("/")
    said = parse_qs(parts.query, keep_blank_values=True)
    tenants = said.pop("tenant", [""])
    if parts.scheme not in SCHEMES:
        raise _refused(
            text,
            "it does not begin with milvus:// or milvus+tls://",
            "须以 milvus:// 或 milvus+tls:// 开头",
        )
    if not parts.hostname:
        raise _refused(text, "it names no server", "没有写明服务器")
    if "@" in parts.netloc:
        # Not shown again: it holds a password.
        raise _refused(
            f"{parts.scheme}://…@{parts.hostname}",
            "a password does not belong in it; set MILVUS_TOKEN to user:password",
            "其中不应有密码；请把 MILVUS_TOKEN 设为 用户:密码",
        )
    if len(names) > 2 or not all(map(_NAME.fullmatch, names)):
        raise _refused(
            text,
            "a name has letters of English, digits and _, and does not begin with a digit",
            "名称只能用英文字母、数字和 _，且不以数字开头",
        )
    if said or parts.fragment or len(tenants) > 1:
        raise _refused(text, "only ?tenant= may follow the name", "名称之后只能有 ?tenant=")
    if tenants[0] and not _TENANT.fullmatch(tenants[0]):
        raise _refused(
            text,
            "a tenant has up to 64 letters, digits, _ and -",
            "租户名为至多 64 个字母、数字、_ 和 -",
        )
    *database, name = names
    return Address(parts.scheme, parts.hostname, port, name, "".join(database), tenants[0])


def _refused(text: str, why: str, why_zh: str) -> UserError:
    return UserError(
        f"{text} is no address of a knowledge base: {why}; write milvus://HOST:{PORT}/NAME",
        zh=f"{text} 不是知识库地址：{why_zh}；写法为 milvus://主机:{PORT}/名称",
    )
