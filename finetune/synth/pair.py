"""A question and its answer from the documents, what they are made of, and which are fit to learn."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ingest.chunk import Span, sentences
from rag.generate import Generator
from rag.prompt import MARK
from rag.render import one_line
from rag.score_norm import Script, script_of
from rag.types import Message, Sampling

Kind = Literal["definition", "heading", "article", "list", "table", "cloze", "model"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A question that characters [start, end) of a document answer.

    `answer` is in those characters, to the letter; `reply` says it in whole sentences, on one line.
    """

    question: str
    answer: str
    reply: str
    start: int
    end: int
    kind: Kind


@dataclass(frozen=True)
class Section:
    """A passage to ask about: `text` begins at character `start` of its document.

    `subject` is what a person would call the document, "" where its title is a mere file name.
    `places` are offsets in the document at which headings begin to hold, and those headings
    (`第二章 › 第一节`); `header` is that of a table that began before the passage.
    """

    text: str
    start: int
    subject: str = ""
    places: tuple[tuple[int, str], ...] = ()
    header: str = ""

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @cached_property
    def script(self) -> Script | None:
        """None where the text is in neither script that questions are made in."""
        return _script(self.text)

    @cached_property
    def code(self) -> tuple[Span, ...]:
        """What stands between fences."""
        return tuple(match.span() for match in _FENCED.finditer(self.text))

    @property
    def named(self) -> str:
        """The subject as a question names it, "" where it has none."""
        if not self.subject or self.subject.startswith("《"):
            return self.subject
        return f"《{self.subject}》" if self.script == "han" else f"“{self.subject}”"

    @cached_property
    def statements(self) -> tuple["Statement", ...]:
        """The sentences of prose that are whole, and no longer than a reply may be."""
        return tuple(self._statements())

    def _statements(self) -> Iterator["Statement"]:
        for start, end in sentences(self.text):
            piece = self.text[start:end]
            start += len(piece) - len(piece.lstrip())
            raw = self.text[start : start + len(piece.strip())]
            if len(raw) > LONGEST_REPLY[self.script or "latin"]:
                continue
            if any(a < start + len(raw) and start < b for a, b in self.code):
                continue
            if (label := _ARTICLE.match(raw)) and label.end() < len(raw):
                start, raw = start + label.end(), raw[label.end() :]
            if _WHOLE.search(raw) and not _MARKUP.search(raw):
                yield Statement(one_line(raw), start, raw)

    def pair(
        self, kind: Kind, question: str, answer: str, reply: str, place: Span
    ) -> Iterator[Pair]:
        """The pair if it is sound, for characters `place` of the text."""
        start, end = place
        made = Pair(tidy(question), answer, reply, self.start + start, self.start + end, kind)
        if answer in self.text[start:end] and sound(made):
            yield made


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence on one line, without the number of its article, and `raw` as the text has it."""

    line: str
    start: int
    raw: str

    @property
    def place(self) -> Span:
        return self.start, self.start + len(self.raw)


Maker = Callable[[Section], Iterator[Pair]]

LONGEST_QUESTION = {"han": 90, "latin": 220}
SHORTEST_QUESTION = {"han": 6, "latin": 12}
LONGEST_REPLY = {"han": 400, "latin": 1000}

_HAN = re.compile(r"[\u3400-\u9fff]")
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile(r"[A-Za-z]")
_FENCED = re.compile(r"(?ms)^[ \t>]*(`{3,}|~{3,}).*?(?:^[ \t>]*\1|\Z)")
_ARTICLE = re.compile(
    r"第[零〇一二三四五六七八九十百千\d]+条(?:之[一二三四五六七八九十]+)?[ \u3000]+"
)
_WHOLE = re.compile(r"[。！？；!?.][”’」』）)\"'`]*$")
_MARKUP = re.compile(  # of Markdown and HTML, of lists and tables, of a page's foot
    r"\]\(|\]\[|\*\*|</|<[a-z]+>|https?://|\{/|(?<!\w)_\w|\\_|&[a-z]+;|\.\.\.|…|— \d+ —"
    r"|^\s*(?:[>#|*•●◆■·-]|\d+[.、)）]\s?|[（(][一二三四五六七八九十\d]+[）)]|[一二三四五六七八九十]+、)"
)
# What a question can't begin with or hold, since only the text around it says what is meant.
_POINTS = re.compile(
    r"^(?:其|该|这|那|此|它|他|她|但|而|并|也|还|又|则|即|且|因此|所以|然而|不过|另外|同时|例如|比如|如果|虽然|首先|其次|最[后终]|其中|注意|换句话说|接着|然后|于是|随后|第[一二三四]步)"
    r"|该(?!死)|上述|前述|前[款项条者]|后者|[本同][条款项]|[上下]一?[章节条]|[上下]文|下列|以下(?!简称)|如下|上面|前面|刚才|接下来|[本这那]一?[个种些样里节章附]"
    r"|[它他她]们?|我们?|咱|[你您]们?|本书|本文|(?<![日根基资])本(?:法|条例|办法|规定|细则|规则|章程|制度|合同|协议)|如[图表]|[图表]\s?\d|示例\s?\d|所示|反过来|也同样|之[前后](?:的|$)"
)
_LATIN_POINTS = re.compile(
    r"\b(?:this|that|these|those|it|its|they|their|them|he|she|his|her|him|we|our|us|you|your|i|my|me"
    r"|here|above|below|following|former|latter|aforementioned|such|(?:figure|table|chapter|section) \d[\d.]*)\b",
    re.IGNORECASE,
)
_BRACKETS = ("（）", "《》", "“”", "‘’", "「」", "『』", "【】", "()", "[]", "{}")


def sound(pair: Pair) -> bool:
    """Whether a question stands alone, and its answer is whole and not given away by it."""
    question, answer, reply = pair.question, pair.answer, pair.reply
    script = script_of(question)
    return (
        script == script_of(reply)
        and SHORTEST_QUESTION[script] <= len(question) <= LONGEST_QUESTION[script]
        and len(answer.strip()) > 0
        and len(reply) <= LONGEST_REPLY[script]
        and folded(answer) not in folded(question)
        and stands_alone(question)
        and balanced(question)
        and balanced(reply)
        and not MARK.search(reply)
        and not MARK.search(question)
        and not re.search(r"\n|\*\*|\]\(|</", question + reply)
    )


def stands_alone(question: str) -> bool:
    """Whether it points at nothing that only the text around it would tell."""
    bare = re.sub(r"《[^》]*》|“[^”]*”", "", question)
    if script_of(question) == "latin":
        return not _LATIN_POINTS.search(bare)
    his = re.search(r"(?<![尤极与及莫])其(?![他它中余次实])", bare)
    return not _POINTS.search(bare) and (his is None or his.start() >= 8)


def balanced(text: str) -> bool:
    if text.count("`") % 2 or text.count('"') % 2:
        return False
    return all(text.count(left) == text.count(right) for left, right in _BRACKETS)


def folded(text: str) -> str:
    """For comparison: without space and case."""
    return "".join(text.split()).casefold()


def tidy(question: str) -> str:
    """One question mark at its end, no space before punctuation of Chinese."""
    bare = question.strip().rstrip("。.；;：:，,？? ")
    bare = re.sub(r"\s+(?=[，。；：、？）》”])|(?<=[（《“，。；：、])\s+", "", bare)
    return f"{bare}？" if script_of(bare) == "han" else f"{bare}?"


def ended(reply: str) -> str:
    """`reply` with a full stop at its end instead of the mark of a list."""
    bare = reply.strip().rstrip("；;，,、：: ")
    if bare and bare[-1] in "。！？!?.…":
        return bare
    return f"{bare}。" if script_of(bare) == "han" else f"{bare}."


def _script(text: str) -> Script | None:
    letters = len(_LETTER.findall(text))
    if letters and len(_HAN.findall(text)) >= 0.3 * letters:
        return "han" if not re.search(r"[\u3040-\u30ff\uac00-\ud7af]{3}", text) else None
    return "latin" if letters and len(_LATIN.findall(text)) >= 0.8 * letters else None


TOKENS = 160
"""Of a model's reply."""

_PROMPT: dict[Script, str] = {
    "han": (
        "阅读资料，就其中的一个事实提一个问题，并从资料中一字不差地抄出答案。"
        "问题要写明所问的对象，脱离资料也能看懂；答案要短。只回复两行：\n问题：……\n答案：……"
    ),
    "latin": (
        "Read the passage. Ask one question about one fact in it, and copy the answer from the "
        "passage to the letter. Name what the question is about, so that it can be understood "
        "without the passage; keep the answer short. Reply with two lines only:\n"
        "Question: ...\nAnswer: ..."
    ),
}
_REPLY = re.compile(
    r"^\W*(?:问题?|Q(?:uestion)?)\s*[:：]\s*(?P<question>\S[^\n]*)\n+\W*(?:答案?|A(?:nswer)?)\s*[:：]\s*(?P<answer>\S[^\n]*)",
    re.IGNORECASE,
)
_AROUND = " \t\"'“”‘’「」"
_ENDS = "。.；;，,"


def write(section: Section, generator: Generator, *, seed: int = 0) -> Pair | None:
    """What the model asks about a passage; None where it does not answer in the form asked for, its
    answer is not in the passage, or the question is not sound."""
    if not section.script:
        return None
    messages = [Message("user", _asking(section, section.script))]
    if generator.count(messages) > generator.context - TOKENS:
        return None
    sampling = Sampling(max_new_tokens=TOKENS, temperature=0, seed=seed)
    found = _REPLY.search("".join(generator.stream(messages, sampling)))
    return read(section, found["question"], found["answer"]) if found else None


def read(section: Section, question: str, answer: str) -> Pair | None:
    """The pair of a question and an answer in the words of the passage, or None."""
    answer = answer.strip(_AROUND)
    answer = answer if answer in section.text else answer.rstrip(_ENDS).strip(_AROUND)
    if not answer or (at := section.text.find(answer)) < 0:
        return None
    start, end = _sentences_around(section.text, (at, at + len(answer)))
    reply = one_line(section.text[start:end])
    return next(section.pair("model", question, answer, reply, (start, end)), None)


def _asking(section: Section, script: Script) -> str:
    title = f"{section.named}\n" if section.named else ""
    header = f"{section.header}\n" if section.header else ""
    return f"{_PROMPT[script]}\n\n{title}{header}{section.text.strip()}"


def _sentences_around(text: str, span: Span) -> Span:
    """The sentences that hold the characters of `span`, without the space around them."""
    held = [(a, b) for a, b in sentences(text) if a < span[1] and span[0] < b]
    start, end = held[0][0], held[-1][1]
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
