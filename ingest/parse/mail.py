"""E-mail: who wrote what to whom and when, then the text; attachments are named, not read."""

import contextlib
import email
import re
from collections.abc import Iterator
from email import policy
from email.message import MIMEPart
from pathlib import Path

from ingest import encoding
from ingest.errors import Unreadable
from ingest.parse.blocks import Block, clean, heading
from ingest.parse.html import html_blocks

LARGEST = 64 << 20  # bytes
_HEADERS = ("From", "To", "Cc", "Date")
_NO_EVIDENCE = ("", "us-ascii", "iso-8859-1", "iso-8859-15", "windows-1252")


def mail_blocks(path: Path, *, warn: list[str]) -> Iterator[Block]:
    if path.stat().st_size > LARGEST:
        raise Unreadable(
            f"{path.name} is larger than the {LARGEST >> 20} MB allowed for a mail",
            zh=f"{path.name} 超过邮件上限 {LARGEST >> 20} MB",
        )
    message = email.message_from_bytes(path.read_bytes(), policy=policy.default)
    if not message.keys():
        raise Unreadable(
            f"{path.name} is no e-mail: it has no headers", zh=f"{path.name} 不是邮件：没有邮件头"
        )
    if subject := message["Subject"]:
        yield heading(str(subject), 1)
    lines = [f"{name}: {message[name]}" for name in _HEADERS if message[name]]
    yield Block(clean("\n".join(lines)))
    body = message.get_body(("plain", "html"))
    if body is not None:
        yield from _body(body, path.name, warn)
    names = [part.get_filename() or part.get_content_type() for part in message.iter_attachments()]
    if names:
        warn.append(f"attachments are not read: {', '.join(names[:10])}")


def _body(body: MIMEPart, name: str, warn: list[str]) -> Iterator[Block]:
    content = body.get_payload(decode=True)
    content = content if isinstance(content, bytes) else b""
    text = _text(content, body.get_content_charset() or "", name, warn)
    if body.get_content_subtype() == "html":
        yield from html_blocks([text], found_title=lambda title: None)
    else:
        yield from (Block(clean(part)) for part in re.split(r"\r?\n\r?\n", text) if part.strip())


def _text(content: bytes, charset: str, name: str, warn: list[str]) -> str:
    """The declared charset is believed where it fits, unless it fits anything."""
    if charset not in _NO_EVIDENCE:
        with contextlib.suppress(LookupError, UnicodeError):
            return content.decode(charset)
    text, detected = encoding.read(content, name=name)
    if detected.replaced:
        warn.append(f"{detected.replaced} bytes could not be decoded")
    return text
