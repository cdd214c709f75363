"""Bytes to text: the encoding is detected from the whole file, and bytes that are lost are counted.

An encoding is chosen by likelihood: each candidate decodes the bytes, and the resulting characters
are scored by how common they are in the language that the encoding is for. The standards themselves
say so: GB 2312, Big5 and JIS X 0208 put the characters of daily use into a first level.
"""

import codecs
import io
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ingest.errors import Unreadable
from ingest.i18n import Translatable

PIECE = 1 << 20  # bytes read at a time
EVIDENCE = 8 << 20  # bytes of non-ASCII pieces that are scored; validity is checked on all bytes

BOMS = (  # the longer ones first, since that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (b"\x84\x31\x95\x33", "gb18030"),
)

# Log prior of each candidate: a Chinese knowledge base is expected, so that two or three
# characters that could also be Korean are taken for Chinese.
_OTHERS = "utf-16-be", "utf-32-le", "utf-32-be", "cp932", "euc_jp", "cp949", "cp1252", "cp1251"
PRIORS = {"gb18030": 0.0, "utf-8": 0.0, "big5hkscs": -4.0, "utf-16-le": -6.0, **dict.fromkeys(_OTHERS, -8.0)}
DECLARED = 20.0  # a page's own charset is only evidence, worth some four characters
ASCII, RARE, SYMBOL, CONTROL, BROKEN = -4.0, -14.5, -7.5, -25.0, -30.0  # log P of one character

FREQUENT = (  # a third of running Chinese text, in both scripts
    "的一是不了在人有我他这這个個们們中来來上大为為和国國地到以说說时時要就出会會可也你对對生能而子那得于於着"
    "著下自之年过過发發后後作里裡用道行所然家种種事成方多经經么麼去法学學如都同现現当當没沒动動面起看定天分还還"
    "进進好小部其些主样樣理心她本前开開但因只从從想实實"
)
BESIDE = -3.0  # log odds of a pair of bytes that hardly occurs in the words of an alphabet
_MIXED = re.compile(rb"[a-z](?=[\xa8\xb8\xc0-\xff])|[\xa8\xb8\xc0-\xff](?=[a-z])", re.IGNORECASE)
_UNUSUAL_BYTES = {
    "cp1252": re.compile(rb"[\x80-\xff](?=[\x80-\xff])"),  # accented letters stand alone
    "cp1251": _MIXED,  # no word is half Latin, half Cyrillic
    "koi8-r": _MIXED,
}
_DECLARATION = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]{2,30})""", re.IGNORECASE)
_UNDECODED = re.compile("[\udc80-\udcff]")
_CONTROL = re.compile("[\0-\x08\x0b\x0e-\x1f\x7f-\x9f\ufeff]")
# The same in UTF-8.
_CONTROL_BYTES = bytes((*range(9), 0x0B, *range(0x0E, 0x20), 0x7F))
_C1 = re.compile(rb"\xc2[\x80-\x9f]")


@dataclass(frozen=True, slots=True)
class Detection:
    """An encoding's Python name, the length of its byte order mark, and how many bytes were lost."""

    encoding: str
    skip: int
    replaced: int


Source = Path | bytes


def losses(detected: Detection) -> list[Translatable]:
    """The warning that bytes were lost, if any were."""
    count = detected.replaced
    return [Translatable("{count} bytes could not be decoded", count=count)] if count else []


def pieces(source: Source) -> Iterator[bytes]:
    """The bytes of a file or of a value, at most `PIECE` at a time."""
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream:
        while piece := stream.read(PIECE):
            yield piece


def detect(source: Source, *, name: str = "") -> Detection:
    """The encoding that explains the whole of `source` best. Raises `Unreadable` if it is not text: it
    has control characters or unassigned ones, or more than a tenth of what is not ASCII can't be decoded."""
    name = name or (source.name if isinstance(source, Path) else "the text")
    head = next(pieces(source), b"")
    for bom, encoding in BOMS:
        if head.startswith(bom):
            return _checked(source, encoding, len(bom), name)
    if _is_utf8(source, name):
        return Detection("utf-8", 0, 0)
    return _checked(source, _likeliest(_evidence(source), _declared(head)), 0, name)


def decode(source: Source, detected: Detection) -> Iterator[str]:
    """The text in pieces: line ends are \\n; no control characters, no lone surrogates."""
    for text in _raw(source, detected.encoding, detected.skip, "replace"):
        yield _CONTROL.sub("", text).replace("\f", "\n")


def _raw(source: Source, encoding: str, skip: int, errors: str = "") -> Iterator[str]:
    """Decoded pieces; an undecodable byte becomes a lone surrogate (U+FFFD in UTF-16 and 32)."""
    wide = encoding.startswith(("utf-16", "utf-32"))
    errors = errors or ("replace" if wide else "surrogateescape")
    lines = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(errors), True)
    for piece in pieces(source):
        yield lines.decode(piece[skip:])
        skip = 0
    yield lines.decode(b"", final=True)


def _is_utf8(source: Source, name: str) -> bool:
    """Whether it is valid UTF-8, in one pass; False if NULs suggest UTF-16. Raises `Unreadable`."""
    decoder, size = codecs.getincrementaldecoder("utf-8")(), 0
    nuls = controls = 0
    try:
        for piece in pieces(source):
            size += len(decoder.decode(piece))
            nuls += piece.count(0)
            controls += len(piece) - len(piece.translate(None, _CONTROL_BYTES))
            controls += piece.count(codecs.BOM_UTF8) + len(_C1.findall(piece))
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    if nuls * 50 > size:
        return False
    _need_text(size, controls, name)
    return True


def _evidence(source: Source) -> bytes:
    """The pieces that hold more than ASCII, up to about `EVIDENCE` bytes."""
    evidence = bytearray()
    for piece in pieces(source):
        if not piece.isascii() or b"\0" in piece:
            evidence += piece
        if len(evidence) >= EVIDENCE:
            break
    return bytes(evidence)


def _declared(head: bytes) -> str | None:
    """The charset that a page or an XML declaration names, if Python knows that encoding."""
    match = _DECLARATION.search(head.replace(b"\0", b""), 0, 4096)
    if not match:
        return None
    try:
        name = codecs.lookup(match[1].decode("ascii")).name
        "".encode(name)
    except LookupError:
        return None
    # On the web, a superset usually goes by the name of its subset.
    return {
        "gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs", "shift_jis": "cp932",
        "euc_kr": "cp949", "iso8859-1": "cp1252", "ascii": "cp1252", "utf-16": "utf-16-le",
    }.get(name, name)  # fmt: skip


def _likeliest(evidence: bytes, declared: str | None) -> str:
    priors = PRIORS | ({declared: PRIORS.get(declared, -8.0) + DECLARED} if declared else {})
    return max(priors, key=lambda encoding: priors[encoding] + _likelihood(evidence, encoding))


def _likelihood(evidence: bytes, encoding: str) -> float:
    common = _common(encoding)
    counts: Counter[str] = Counter()
    for text in _raw(evidence, encoding, 0):
        counts.update(text)
    total = sum(count * _log_p(character, common) for character, count in counts.items())
    if encoding in _UNUSUAL_BYTES:
        total += BESIDE * sum(1 for _ in _UNUSUAL_BYTES[encoding].finditer(evidence))
    return total


def _log_p(character: str, common: dict[str, float]) -> float:
    code = ord(character)
    if character in common:
        return common[character]
    if 0x20 <= code < 0x7F or character in "\t\n\r\f":
        return ASCII
    if code < 0x20 or 0x7F <= code < 0xA0:
        return CONTROL
    if 0xD800 <= code < 0xE000 or code == 0xFFFD:
        return BROKEN
    if 0xE000 <= code < 0xF900 or code >= 0xF0000 or not character.isprintable():
        return CONTROL
    return RARE


@cache
def _common(encoding: str) -> dict[str, float]:
    """Log probabilities of the characters that are common in text of `encoding`; others are `RARE`."""
    symbols = dict.fromkeys(_rows("gb2312", 0xA1, 0xA1) + _rows("gb2312", 0xA3, 0xA3), SYMBOL)
    chinese = symbols | dict.fromkeys(FREQUENT, math.log(0.35 / len(FREQUENT)))
    simplified = _level(_rows("gb2312", 0xB0, 0xD7), 0.5)
    traditional = _level(_rows("big5", 0xA4, 0xC6), 0.5)
    kana = _level(_chars(0x3041, 0x3094) + _chars(0x30A1, 0x30F7), 0.5)
    japanese = _level(_rows("euc_jp", 0xB0, 0xCF), 0.4) | kana | symbols
    korean = _level(_rows("euc_kr", 0xB0, 0xC8), 0.9)
    western = _level(_chars(0xC0, 0x100), 0.7) | dict.fromkeys("’‘“”–—…€«»°£©®", -6.0)
    cyrillic = _level(_chars(0x430, 0x450), 0.9) | _level(_chars(0x410, 0x430) + "Ёё№«»—", 0.1)
    known = {
        **{"gb18030": simplified | chinese, "big5hkscs": traditional | chinese},
        **{"cp932": japanese, "euc_jp": japanese, "cp949": korean | symbols},
        **{"cp1252": western, "cp1251": cyrillic, "koi8-r": cyrillic},
    }
    letters = _level(_chars(0xC0, 0x530), 0.7)
    letters |= western | cyrillic | korean | japanese | traditional | simplified | chinese
    return known.get(encoding, letters)


def _chars(start: int, end: int) -> str:
    return "".join(map(chr, range(start, end)))


def _level(characters: str, weight: float) -> dict[str, float]:
    return dict.fromkeys(characters, math.log(weight / len(characters)))


def _rows(encoding: str, first: int, last: int) -> str:
    """All characters of a double-byte standard whose lead byte is in `first..last`."""
    trails = (*range(0x40, 0x7F), *range(0xA1, 0xFF))
    table = b"".join(bytes((lead, trail)) for lead in range(first, last + 1) for trail in trails)
    return "".join(c for c in table.decode(encoding, "ignore") if ord(c) > 0x7F)


def _checked(source: Source, encoding: str, skip: int, name: str) -> Detection:
    """Counts the bytes of `source` that `encoding` loses; raises `Unreadable` if it is not text."""
    size = foreign = lost = controls = rare = 0
    wide = encoding.startswith(("utf-16", "utf-32"))
    common = _common(encoding) if wide and not skip else None
    for text in _raw(source, encoding, skip):
        size += len(text)
        if not text.isascii():
            foreign += _foreign(text)
            lost += len(_UNDECODED.findall(text))
            lost += 2 * text.count("\ufffd") * wide
            for character, count in Counter(text if encoding != "utf-8" else "").items():
                controls += count * (unicodedata.category(character) in ("Cn", "Co"))
                rare += count * (common is not None and character > "\u2e7f" and character not in common)
        controls += len(_CONTROL.findall(text))
    _need_text(size, controls, name)
    # Almost any bytes are UTF-16, but hardly any of them as characters that people write.
    if (lost > 1 and lost * 10 > foreign) or rare * 2 > foreign:
        lost = max(lost, 2 * rare)
        raise Unreadable(
            "{name} is not text ({lost} bytes fit no encoding; {encoding} is nearest)",
            name=name, lost=lost, encoding=encoding,
        )  # fmt: skip
    return Detection(encoding, skip, lost)


def _need_text(size: int, controls: int, name: str) -> None:
    if controls * 100 > size:
        raise Unreadable(
            "{name} is not text: {n} of {size} characters are controls or unassigned",
            name=name,
            n=controls,
            size=size,
        )


def _foreign(text: str) -> int:
    """The number of characters outside ASCII."""
    return len(text) - len(text.encode("ascii", "ignore"))
