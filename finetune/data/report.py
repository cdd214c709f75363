"""A diagnosis for a person and for a program: tokens as text, a self-contained page, JSON, a histogram.

All text of the data is escaped, and the page forbids scripts and anything from other hosts.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.check import CONTROLS, Diagnosis, Unit
from finetune.types import Finding, Problem, TokenRow
from ingest.i18n import Translatable, Translator, translate
from ingest.normalize import readable

MAX_TOGETHER = 8
"""The most tokens that one character is made of."""


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """A token, or the few that only together make whole characters."""

    text: str
    ids: tuple[int, ...]
    learnt: bool
    special: bool


def pieces(row: TokenRow, tokenizer: Any) -> list[TokenPiece]:
    """The row's text; special tokens by their names."""
    from rag.chatglm.chat import encode_text  # loads torch

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    ids = [int(index) for index in row.ids]
    learnt = [bool(label >= 0) for label in row.labels]
    special = [_is_special(index, tokenizer) for index in ids]
    # After another token, a token's leading blank is kept.
    anchor = encode_text("a", tokenizer)[-1:]
    offset = len(decode(anchor))
    found: list[TokenPiece] = []
    at = 0
    while at < len(ids):
        end = at + 1
        if special[at]:
            text = tokenizer.convert_ids_to_tokens(ids[at])
        else:
            text = decode(anchor + ids[at:end])[offset:]
            while (
                text.endswith("\ufffd")
                and end < min(len(ids), at + MAX_TOGETHER)
                and not special[end]
                and learnt[end] == learnt[at]
            ):
                end += 1
                text = decode(anchor + ids[at:end])[offset:]
        found.append(TokenPiece(text, tuple(ids[at:end]), learnt[at], special[at]))
        at = end
    return found


def _is_special(index: int, tokenizer: Any) -> bool:
    """Whether the token stands for no text: a role, a mask, an end, or an unknown character."""
    model = getattr(tokenizer, "sp", None)
    if model is None:
        return index in tokenizer.added_tokens_decoder
    beyond = index >= model.get_piece_size()
    return beyond or model.is_control(index) or model.is_unknown(index)


def plain(parts: Sequence[TokenPiece]) -> str:
    """The pieces with │ between them, learnt ones within ⟦ ⟧, and ↵ before each line end."""
    runs: list[str] = []
    for learnt, run in groupby(parts, key=lambda piece: piece.learnt):
        text = "│".join(visible(piece.text) for piece in run)
        runs.append(f"⟦{text}⟧" if learnt else text)
    return "".join(runs)


def visible(text: str) -> str:
    """The text with visible signs instead of characters that control a terminal or a page."""
    return CONTROLS.sub(_sign, text).replace("\n", "↵\n")


def _sign(control: re.Match[str]) -> str:
    """Unicode's picture of a control character, or its number."""
    code = ord(control[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"\\u{code:04x}"


LISTED = 200
"""The most findings of a problem that a page lists."""
TEMPLATE = Path(__file__).with_name("report.html")
TITLES: dict[Problem, Translatable] = {
    "broken": Translatable("can't be read"),
    "ended": Translatable("the file breaks off"),
    "encoding": Translatable("encoding"),
    "missing": Translatable("missing field"),
    "empty": Translatable("empty field"),
    "type": Translatable("wrong type or role"),
    "long": Translatable("over-long"),
    "conflict": Translatable("conflicting answers"),
    "duplicate": Translatable("duplicate"),
    "special": Translatable("special tokens in text"),
    "control": Translatable("control characters"),
    "place": Translatable("no place in the template"),
}
UNITS: dict[Unit, Translatable] = {"tokens": Translatable("tokens"), "characters": Translatable("characters")}
SHARE = 0.99
"""The share of the rows that determines the bins; the few that are much longer share the last one."""
BINS, BAR = 20, 40
"""The most bins of a histogram, and the length of its longest bar in characters."""
HEADS = {"json": b'{\n "files"', "html": b"<!doctype html>"}
"""How the files that are written begin."""


@dataclass(frozen=True, slots=True)
class View:
    """A row of a training and where it comes from."""

    source: str
    pieces: tuple[TokenPiece, ...]

    def title(self, say: Translator) -> str:
        return say(
            "{source}: {tokens:,} tokens, {learnt:,} in the loss",
            source=self.source,
            tokens=sum(len(piece.ids) for piece in self.pieces),
            learnt=sum(len(piece.ids) for piece in self.pieces if piece.learnt),
        )


def record(diagnosis: Diagnosis) -> dict[str, Any]:
    """Everything found, as JSON values."""
    return {
        "files": list(diagnosis.files),
        "rows": diagnosis.rows,
        **{n: getattr(diagnosis, n) for n in ("usable", "bad", "warned", "unit", "max_length")},
        "lengths": figures(diagnosis.lengths),
        "histogram": [asdict(bin) for bin in bins(diagnosis.lengths)],
        "problems": {problem: {"bad": bad, "warnings": rest} for problem, bad, rest in counts(diagnosis)},
        "findings": [
            {"source": f.source, "problem": f.problem, "text": f.text}
            | {"zh": translate(f.text, "zh"), "bad": f.bad}
            for f in diagnosis.findings
        ],
    }


def counts(diagnosis: Diagnosis) -> list[tuple[Problem, int, int]]:
    """For each problem: the number of bad rows, and of warnings."""
    return [
        (problem, sum(finding.bad for finding in found), sum(not one.bad for one in found))
        for problem, found in diagnosis.by_problem().items()
    ]


def page(diagnosis: Diagnosis, views: Sequence[View], say: Translator) -> str:
    """One HTML page, light or dark as the reader's screen is."""
    from jinja2 import Environment

    texts = {
        "title": say("Training data"),
        "summary": say("What was found"),
        "nothing": say("Nothing is wrong."),
        "problem": say("problem"),
        "bad": say("bad"),
        "warning": say("warning"),
        "warnings": say("warnings"),
        "lengths": say("Length of rows"),
        "findings": say("Row by row"),
        "tokens": say("Tokens and which of them count in the loss"),
        "learnt": say("in the loss"),
        "context": say("context"),
        "special": say("special token"),
    }
    tiles = (
        (diagnosis.rows, say("rows"), ""),
        (diagnosis.usable, say("usable"), "good" if diagnosis.usable else "bad"),
        (diagnosis.bad, say("bad"), "bad" if diagnosis.bad else ""),
        (diagnosis.warned, say("with warnings"), "warn" if diagnosis.warned else ""),
    )
    problems: list[tuple[str, int, list[Finding], str]] = []
    for problem, found in diagnosis.by_problem().items():
        more = len(found) - LISTED
        rest = say("and {more:,} more, in the JSON report", more=more) if more > 0 else ""
        listed = sorted(found, key=lambda finding: not finding.bad)[:LISTED]
        problems.append((say(TITLES[problem]), len(found), listed, rest))
    template = Environment(autoescape=True).from_string(TEMPLATE.read_text("utf-8"))
    text = template.render(
        language="zh-CN" if say.language == "zh" else "en",
        texts=texts,
        files=", ".join(diagnosis.files),
        tiles=tiles,
        counts=[(say(TITLES[kind]), *numbers) for kind, *numbers in counts(diagnosis)],
        lengths=summary(diagnosis, say),
        columns=(say(UNITS[diagnosis.unit]), say("rows")),
        bars=bars(diagnosis.lengths),
        problems=problems,
        views=views,
        say=say,
        visible=visible,
    )
    return readable(text) + "\n"


@dataclass(frozen=True, slots=True)
class Bin:
    """`count` rows of `low` to `high` tokens, both included; if `high` is None, of `low` or more."""

    low: int
    high: int | None
    count: int

    @property
    def label(self) -> str:
        return f"{self.low}–{self.high}" if self.high is not None else f"≥ {self.low}"


def bins(lengths: NDArray[np.int32], most: int = BINS) -> list[Bin]:
    """At most `most` bins of one width, which is 1, 2 or 5 times a power of ten; the first holds the
    shortest row, and the last all the longest."""
    if not len(lengths):
        return []
    longest = int(lengths.max())
    top = int(np.quantile(lengths, SHARE, method="inverted_cdf"))
    if longest <= 1.5 * top:
        top = longest
    widths = (step * 10**power for power in range(12) for step in (1, 2, 5))
    width = next(width for width in widths if top // width < most)
    last = top // width
    counts = np.bincount(np.minimum(lengths // width, last))
    found = [Bin(i * width, (i + 1) * width - 1, int(count)) for i, count in enumerate(counts)]
    if longest >= (last + 1) * width:
        found[-1] = replace(found[-1], high=None)
    return found[min(int(lengths.min()) // width, last) :]


def figures(lengths: NDArray[np.int32]) -> dict[str, int]:
    """`rows`, `total`, `shortest`, `median`, `p95` and `longest`; only `rows` if there are none."""
    if not len(lengths):
        return {"rows": 0}
    median, p95 = np.quantile(lengths, [0.5, 0.95], method="inverted_cdf")
    return {
        "rows": len(lengths),
        "total": int(lengths.sum(dtype=np.int64)),
        "shortest": int(lengths.min()),
        "median": int(median),
        "p95": int(p95),
        "longest": int(lengths.max()),
    }


def summary(diagnosis: Diagnosis, say: Translator) -> str:
    """The figures of the rows' lengths in one line."""
    if not len(diagnosis.lengths):
        return say("no usable rows")
    return say(
        "{total:,} {unit}; of a row: median {median:,}, 95 % up to {p95:,}, longest {longest:,}",
        unit=say(UNITS[diagnosis.unit]),
        **figures(diagnosis.lengths),
    )


def bars(lengths: NDArray[np.int32]) -> list[tuple[str, str, str]]:
    """A histogram as text: of each bin its lengths, its rows, and a bar."""
    drawn = bins(lengths)
    most = max((bin.count for bin in drawn), default=1)
    return [
        (bin.label, f"{bin.count:,}", "█" * round(BAR * bin.count / most) or "▏" * bool(bin.count))
        for bin in drawn
    ]
