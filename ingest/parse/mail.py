"""E-mail (.eml, .mht and Outlook's .msg): headers, text, attachments, forwarded messages."""

import contextlib
import email
import re
from collections.abc import Iterator
from email import policy
from email.message import MIMEPart
from functools import lru_cache
from pathlib import Path
from typing import Any

from ingest import encoding
from ingest.errors import Unreadable
from ingest.i18n import Translatable
from ingest.parse.blocks import Block, Inner, clean, heading
from ingest.parse.html import html_blocks, page_blocks
from ingest.parse.office import MIME, extract

LARGEST = 64 << 20  # bytes
DEPTH = 10  # messages inside one another
_POLICY = policy.default.clone(  # which would parse a header each time that it is asked for
    header_factory=lru_cache(1000)(policy.default.header_factory)
)
TOO_DEEP = Translatable("messages inside {most} others are not read", most=DEPTH)
_HEADERS = ("From", "To", "Cc", "Date")
_ATTACHMENT = "__attach_version1.0_#"
_CONTENT = "__substg1.0_37010102"
_FILE_NAMES = ("__substg1.0_3707001F", "__substg1.0_3704001F")  # the long and the short one, in Unicode
_NO_EVIDENCE = ("", "us-ascii", "iso-8859-1", "iso-8859-15", "windows-1252")


def mail_blocks(path: Path, *, warn: list[str], inner: Inner) -> Iterator[Block]:
    if path.stat().st_size > LARGEST:
        size = LARGEST >> 20
        raise Unreadable(
            "{name} is larger than {size} MB, the limit for an e-mail", name=path.name, size=size
        )
    message = email.message_from_bytes(path.read_bytes(), policy=_POLICY)
    if not message.keys():
        raise Unreadable("{name} is not an e-mail: it has no headers", name=path.name)
    yield from _message(message, path.name, warn, inner, depth=0)


def _message(message: MIMEPart, name: str, warn: list[str], inner: Inner, *, depth: int) -> Iterator[Block]:
    """A message, then its attachments, each under its name; an attached message is one too."""
    if subject := message["Subject"]:
        yield heading(str(subject), min(depth + 1, 9))
    lines = [f"{name}: {message[name]}" for name in _HEADERS if message[name]]
    yield Block(clean("\n".join(lines)))
    body = message.get_body(("plain", "html"))
    if body is not None:
        yield from _body(body, name, warn)
    alone = body is None and not message.is_multipart()  # the message is its attachment
    for part in [message] if alone else message.iter_attachments():
        if part.get_content_type() == "message/rfc822":
            if depth + 1 < DEPTH:
                for forwarded in part.iter_parts():
                    yield from _message(forwarded, name, warn, inner, depth=depth + 1)
            else:
                warn.append(TOO_DEEP)
        elif not (part["Content-ID"] and part.get_content_maintype() == "image"):
            content: Any = part.get_payload(decode=True)
            file = part.get_filename() or part.get_content_type().replace("/", ".")
            yield from inner(content or b"", file)


def _body(body: MIMEPart, name: str, warn: list[str]) -> Iterator[Block]:
    content: Any = body.get_payload(decode=True)
    text = _text(content or b"", body.get_content_charset() or "", name, warn)
    if body.get_content_subtype() == "html":
        saved = name.lower().endswith((".mht", ".mhtml"))  # a page of the web
        yield from page_blocks([text], warn=warn) if saved else html_blocks([text])
    else:
        yield from (Block(clean(part)) for part in re.split(r"\r?\n\r?\n", text) if part.strip())


def _text(content: bytes, charset: str, name: str, warn: list[str]) -> str:
    """The declared charset is used if it fits, unless it is one that fits any bytes."""
    if charset not in _NO_EVIDENCE:
        with contextlib.suppress(LookupError, UnicodeError):
            return content.decode(charset)
    detected = encoding.detect(content, name=name)
    warn += encoding.losses(detected)
    return "".join(encoding.decode(content, detected))


def outlook_blocks(path: Path, *, warn: list[str], inner: Inner) -> Iterator[Block]:
    """A .msg: subject, other headers, text and attached messages as kreuzberg reads them, and the files
    that are attached."""
    result = extract(path, MIME["msg"])
    fields = {
        name: value for node in result.document["nodes"] for name, value in node["content"].get("entries", ())
    }
    if subject := fields.pop("Subject", ""):
        yield heading(subject, 1)
    yield Block(clean("\n".join(f"{name}: {value}" for name, value in fields.items())))
    for node in result.document["nodes"]:
        yield Block(clean(node["content"].get("text") or ""))
    files = _attached(path)
    for name, content in files:
        yield from inner(content, name)
    read = {name for name, _ in files}
    unread = [name for name in dict.fromkeys(result.metadata.get("attachments") or ()) if name not in read]
    for child in result.children or ():
        if child["path"] in unread:
            unread.remove(child["path"])
            yield heading(child["path"], 2)
            yield Block(clean(child["result"].content))
    if unread:
        warn.append(Translatable("attachments are not read: {names}", names=unread[:10]))


def _attached(path: Path) -> list[tuple[str, bytes]]:
    """Name and content of each attached file (MS-OXMSG: a storage with the properties of each)."""
    import olefile

    files = []
    with olefile.OleFileIO(str(path)) as ole:
        for folder in sorted({f"{entry[0]}/" for entry in ole.listdir() if entry[0].startswith(_ATTACHMENT)}):
            names = (ole.openstream(folder + key).read() for key in _FILE_NAMES if ole.exists(folder + key))
            if ole.exists(folder + _CONTENT):
                name = next(names, b"").decode("utf-16-le", "replace") or "attachment"
                files.append((name, ole.openstream(folder + _CONTENT).read()))
    return files
