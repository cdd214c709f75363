"""The data doctor: what is wrong with training data, row by row, before a model sees it.

Files are read once, and of each row only digests of 16 bytes, its length and its findings are kept.
"""

import re
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from finetune.data.formats import AS_FOUND, Columns, read
from finetune.data.token_view import CONTROLS
from finetune.types import Example, Finding, InvalidRow, Problem
from ingest.i18n import Translatable

if TYPE_CHECKING:
    from finetune.data.template import RowEncoder

Unit = Literal["tokens", "characters"]
UNLIMITED = 1 << 30
SAMPLES = 2
"""Rows that are shown where none was asked for, beside the longest."""
# Words that some tokenizer of ChatGLM, or of what data is often made with, treats as special.
SPECIAL = re.compile(
    r"<\|\w+\|>|\[[gs]?MASK\]|</?s>|<[se]op>|<(?:pad|unk|bos|eos)>|\[(?:CLS|SEP|PAD|UNK)\]"
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found in `files`. A row is what is counted in them; a bad one is not usable."""

    files: tuple[str, ...]
    rows: int
    findings: tuple[Finding, ...]
    lengths: NDArray[np.int32]
    """In `unit`: tokens of each row of a training, or characters of each usable row of the files."""
    unit: Unit
    max_length: int
    """In `unit`; 0: nothing is too long."""
    samples: tuple[Example, ...]

    @property
    def bad(self) -> int:
        """Rows."""
        return len({finding.source for finding in self.findings if finding.bad})

    @property
    def warned(self) -> int:
        """Rows."""
        return len({finding.source for finding in self.findings if not finding.bad})

    @property
    def usable(self) -> int:
        return self.rows - self.bad

    def by_problem(self) -> dict[Problem, list[Finding]]:
        """The findings of each kind that there is: kinds with bad rows first, then by number."""
        found: dict[Problem, list[Finding]] = {}
        for finding in self.findings:
            found.setdefault(finding.problem, []).append(finding)

        def weight(kind: tuple[Problem, list[Finding]]) -> tuple[bool, int]:
            return any(finding.bad for finding in kind[1]), len(kind[1])

        return dict(sorted(found.items(), key=weight, reverse=True))


def diagnose(
    paths: Sequence[Path],
    *,
    columns: Columns = AS_FOUND,
    encoder: "RowEncoder | None" = None,
    template: str = "chat",
    max_length: int = 0,
    wanted: Collection[str] = (),
    progress: Callable[[], None] = lambda: None,
) -> Diagnosis:
    """Read all rows. With an `encoder` lengths are in tokens and its `max_length` and `template`
    count, else in characters and these.

    `samples` are the rows `wanted` (`17` or `file.json:17`), else the first ones and the longest.
    `progress` is called once a row.
    """
    measure = Tokens(encoder) if encoder else Characters(max_length)
    repeats = Repeats()
    findings: list[Finding] = []
    lengths = array("i")
    samples: list[Example] = []
    longest: tuple[int, Example] | None = None
    rows, last = 0, ""
    for item in read(paths, columns=columns):
        if item.source != last:  # a row may give several examples
            rows, last = rows + 1, item.source
            progress()
        if isinstance(item, Finding):
            findings.append(item)
            continue
        findings += repeats(item)
        findings += special_words(item)
        findings += controls(item)
        findings += out_of_place(item, encoder.template if encoder else template)
        measured, found = measure(item)
        findings += found
        lengths.extend(measured)
        if any(finding.bad for finding in found):
            continue
        if wanted:
            samples += [item] if _is_wanted(item.source, wanted) else []
        elif len(samples) < SAMPLES:
            samples.append(item)
        elif longest is None or max(measured) > longest[0]:
            longest = max(measured), item
    if longest:
        samples.append(longest[1])
    return Diagnosis(
        tuple(str(path) for path in paths),
        rows,
        tuple(findings),
        np.array(lengths, np.int32),
        measure.unit,
        measure.max_length,
        tuple(samples),
    )


class Repeats:
    """Finds rows that say the same, or answer the same question otherwise, up to blanks."""

    def __init__(self) -> None:
        self.rows: dict[bytes, str] = {}
        self.asked: dict[bytes, str] = {}

    def __call__(self, example: Example) -> Iterator[Finding]:
        texts = [message.text for message in example.messages]
        texts[-2] += f"\n{example.input}"
        *before, answer = [
            f"{message.role} {' '.join(text.split())}"
            for message, text in zip(example.messages, texts, strict=True)
        ]
        asked = _digest(before)
        whole = _digest([*before, answer])
        if first := self.rows.get(whole):
            yield Finding(
                example.source,
                "duplicate",
                Translatable("the same as {first}", first=first),
                bad=False,
            )
            return
        self.rows[whole] = example.source
        if first := self.asked.get(asked):
            yield Finding(
                example.source,
                "conflict",
                Translatable("the same question as {first}, but another answer", first=first),
                bad=False,
            )
            return
        self.asked[asked] = example.source


def special_words(example: Example) -> Iterator[Finding]:
    """A warning where text holds words such as <|user|>, which a tokenizer has for itself."""
    texts = (*(message.text for message in example.messages), example.input)
    words = dict.fromkeys(word for text in texts for word in SPECIAL.findall(text))
    if words:
        named = ", ".join(list(words)[:5])
        yield Finding(
            example.source,
            "special",
            Translatable(
                "the text holds {named}; it is learnt as text, not as a special token", named=named
            ),
            bad=False,
        )


def controls(example: Example) -> Iterator[Finding]:
    """A warning where text holds characters that are not seen and steer a terminal or a line."""
    texts = (*(message.text for message in example.messages), example.input)
    found = dict.fromkeys(
        sign for text in texts for sign in CONTROLS.findall(text.replace("\r\n", ""))
    )
    if found:
        named = ", ".join(f"U+{ord(sign):04X}" for sign in list(found)[:5])
        yield Finding(
            example.source,
            "control",
            Translatable(
                "the text holds control characters ({named}), which are learnt as they are",
                named=named,
            ),
            bad=False,
        )


def out_of_place(example: Example, template: str) -> Iterator[Finding]:
    """A warning where a template has no place for some of the messages."""
    if count := example.unplaced(template):
        yield Finding(
            example.source,
            "place",
            Translatable(
                "the {text} form has no place for {count} earlier messages; they are left out",
                text=template,
                count=count,
            ),
            bad=False,
        )


class Characters:
    """Lengths in characters, where there is no tokenizer."""

    unit: Unit = "characters"

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def __call__(self, example: Example) -> tuple[list[int], list[Finding]]:
        size = sum(len(message.text) for message in example.messages) + len(example.input)
        if not self.max_length or size <= self.max_length:
            return [size], []
        return [size], [
            Finding(
                example.source,
                "long",
                Translatable(
                    "{size} characters, more than {max_length}; --model counts tokens",
                    size=size,
                    max_length=self.max_length,
                ),
                bad=False,
            )
        ]


class Tokens:
    """Lengths in tokens, of the rows that a training would learn if it cut nothing."""

    unit: Unit = "tokens"

    def __init__(self, encoder: "RowEncoder") -> None:
        self.encoder, self.max_length = encoder, encoder.max_length
        self.whole = replace(encoder, max_length=UNLIMITED)

    def __call__(self, example: Example) -> tuple[list[int], list[Finding]]:
        lengths = [len(row) for row in self.whole(example).rows]
        size = max(lengths)
        if size <= self.max_length:
            return lengths, []
        try:
            self.encoder(example)
        except InvalidRow as invalid:
            return lengths, [invalid.finding(example.source)]
        text = Translatable(
            "{size} tokens, more than {most}: its earliest turns, the middle of its question, or the "
            "end of its answer will be cut",
            size=size,
            most=self.max_length,
        )
        return lengths, [Finding(example.source, "long", text, bad=False)]


def _digest(texts: Sequence[str]) -> bytes:
    return blake2b("\0".join(texts).encode(), digest_size=16).digest()


def _is_wanted(source: str, wanted: Collection[str]) -> bool:
    return source in wanted or source.rpartition(":")[2] in wanted
