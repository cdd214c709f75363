"""Text inside pictures that stand in a document, within bounds."""

from dataclasses import dataclass, field

from ingest.ocr import Reader, picture_size
from ingest.parse.blocks import Block

MOST = 60  # pictures read of one document
SMALLEST = 40  # pixels of the shorter side; less is a line or a bullet
SMALLEST_FILE = 4096  # bytes; without OCR, smaller pictures are not even counted as unread
AREA = 8_000  # pixels; less is an icon
LARGEST = 30 << 20  # bytes of one picture


@dataclass
class Pictures:
    """Reads pictures with `reader`, each distinct one once; None reads nothing and counts."""

    reader: Reader | None
    read: int = 0
    unread: int = 0
    _known: set[int] = field(default_factory=set)

    def blocks(self, content: bytes) -> list[Block]:
        """The picture's text as a block, or nothing."""
        text = self.text(content)
        return [Block(text)] if text else []

    def text(self, content: bytes) -> str:
        key = hash(content)
        if key in self._known:
            return ""  # a logo on every page is read once
        self._known.add(key)
        if self.reader is None:  # nor is there anything to decode a picture with
            self.unread += len(content) > SMALLEST_FILE
            return ""
        size = picture_size(content) if len(content) <= LARGEST else None
        if size is None or min(size) < SMALLEST or size[0] * size[1] < AREA:
            return ""
        if self.read >= MOST:
            self.unread += 1
            return ""
        self.read += 1
        return self.reader.text(content)

    def warnings(self) -> list[str]:
        if not self.unread:
            return []
        reason = f"only the first {MOST} are" if self.reader else "OCR is off or not installed"
        return [f"pictures not read: {self.unread} ({reason})"]
