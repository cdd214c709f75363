"""Checks training data: what is wrong with it, row by row, before a model sees it.

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

from finetune.data.formats import AS_FOUND, read
from finetune.options import Columns
from finetune.types import Example, Finding, InvalidRow, Problem
from ingest.i18n import Translatable

if TYPE_CHECKING:
    from finetune.data.template import RowEncoder

Unit = Literal["tokens", "characters"]
UNLIMITED = 1 << 30
SAMPLES = 2
"""The number of first rows that are shown by default, beside the longest."""
# Words that some tokenizer of ChatGLM, or of models that data is often made with, treats as special.
SPECIAL = re.compile(r"<\|\w+\|>|\[[gs]?MASK\]|</?s>|<[se]op>|<(?:pad|unk|bos|eos)>|\[(?:CLS|SEP|PAD|UNK)\]")
# C0 except tab and line end, C1, and characters that change the direction of the text around them.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


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
        """The number of bad rows."""
        return len({finding.source for finding in self.findings if finding.bad})

    @property
    def warned(self) -> int:
        """The number of rows with warnings."""
        return len({finding.source for finding in self.findings if not finding.bad})

    @property
    def usable(self) -> int:
        return self.rows - self.bad

    def by_problem(self) -> dict[Problem, list[Finding]]:
        """The findings by problem: problems with bad rows first, then by number."""
        groups: dict[Problem, list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault(finding.problem, []).append(finding)

        def weight(group: tuple[Problem, list[Finding]]) -> tuple[bool, int]:
            return any(finding.bad for finding in group[1]), len(group[1])

        return dict(sorted(groups.items(), key=weight, reverse=True))


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
    count, otherwise in characters and these arguments.

    `samples` are the rows `wanted` (`17` or `file.json:17`), otherwise the first ones and the
    longest. `progress` is called once a row.
    """
    if encoder:
        template, max_length = encoder.template, encoder.max_length
    repeats = Repeats()
    findings: list[Finding] = []
    lengths = array("i")
    samples: list[Example] = []
    longest: tuple[int, Example] | None = None
    rows = 0
    for item in read(paths, columns=columns):
        rows += 1
        progress()
        if isinstance(item, Finding):
            findings.append(item)
            continue
        findings += repeats(item)
        findings += special_words(item)
        findings += controls(item)
        findings += unplaced_messages(item, template)
        sizes, finding = _tokens(item, encoder) if encoder else _characters(item, max_length)
        lengths.extend(sizes)
        if finding:
            findings.append(finding)
            if finding.bad:
                continue
        if wanted:
            if item.source in wanted or item.source.rpartition(":")[2] in wanted:
                samples.append(item)
        elif len(samples) < SAMPLES:
            samples.append(item)
        elif longest is None or max(sizes) > longest[0]:
            longest = max(sizes), item
    if longest:
        samples.append(longest[1])
    return Diagnosis(
        tuple(map(str, paths)),
        rows,
        tuple(findings),
        np.array(lengths, np.int32),
        "tokens" if encoder else "characters",
        max_length,
        tuple(samples),
    )


class Repeats:
    """Finds rows with the same text, or with another answer to the same question, up to blanks."""

    def __init__(self) -> None:
        self.rows: dict[bytes, str] = {}
        self.questions: dict[bytes, str] = {}

    def __call__(self, example: Example) -> Iterator[Finding]:
        texts = [message.text for message in example.messages]
        texts[-2] += f"\n{example.input}"
        turns = [
            f"{message.role} {' '.join(text.split())}"
            for message, text in zip(example.messages, texts, strict=True)
        ]
        source, question, whole = example.source, _digest(turns[:-1]), _digest(turns)
        if first := self.rows.get(whole):
            yield Finding(source, "duplicate", Translatable("the same as {first}", first=first))
            return
        self.rows[whole] = source
        if first := self.questions.get(question):
            text = Translatable("the same question as {first}, but another answer", first=first)
            yield Finding(source, "conflict", text)
            return
        self.questions[question] = source


def _digest(texts: Sequence[str]) -> bytes:
    return blake2b("\0".join(texts).encode(), digest_size=16).digest()


def special_words(example: Example) -> Iterator[Finding]:
    """A warning if the text holds words such as <|user|>, which are special to a tokenizer."""
    if words := dict.fromkeys(word for text in _texts(example) for word in SPECIAL.findall(text)):
        text = Translatable(
            "the text holds {named}; it is treated as text, not as a special token",
            named=", ".join(list(words)[:5]),
        )
        yield Finding(example.source, "special", text)


def controls(example: Example) -> Iterator[Finding]:
    """A warning if the text holds characters that are not visible and control a terminal or a line."""
    texts = (text.replace("\r\n", "") for text in _texts(example))
    if signs := dict.fromkeys(sign for text in texts for sign in CONTROLS.findall(text)):
        text = Translatable(
            "the text holds control characters ({named}), which are kept as they are",
            named=", ".join(f"U+{ord(sign):04X}" for sign in list(signs)[:5]),
        )
        yield Finding(example.source, "control", text)


def _texts(example: Example) -> tuple[str, ...]:
    return (*(message.text for message in example.messages), example.input, example.rejected)


def unplaced_messages(example: Example, template: str) -> Iterator[Finding]:
    """A warning if a template has no place for some of the messages."""
    if count := example.unplaced(template):
        text = Translatable(
            "the {text} form has no place for {count} earlier messages; they are left out",
            text=template,
            count=count,
        )
        yield Finding(example.source, "place", text)


def _characters(example: Example, max_length: int) -> tuple[list[int], Finding | None]:
    """The length in characters."""
    size = sum(map(len, _texts(example)))
    if not max_length or size <= max_length:
        return [size], None
    text = Translatable(
        "{size} characters, more than {max_length}; --model counts tokens", size=size, max_length=max_length
    )
    return [size], Finding(example.source, "long", text)


def _tokens(example: Example, encoder: "RowEncoder") -> tuple[list[int], Finding | None]:
    """The lengths in tokens of the rows that a training would learn if it cut nothing."""
    lengths = [len(row) for row in replace(encoder, max_length=UNLIMITED)(example).rows]
    size = max(lengths)
    if size <= encoder.max_length:
        return lengths, None
    try:
        if not encoder(example).shortened:  # the halves of a pair fit
            return lengths, None
    except InvalidRow as invalid:
        return lengths, invalid.finding(example.source)
    text = Translatable(
        "{size} tokens, more than {most}: its earliest turns, the middle of its question, or the "
        "end of its answer will be cut",
        size=size,
        most=encoder.max_length,
    )
    return lengths, Finding(example.source, "long", text)
