"""A passage -> a question and its answer, written by a language model and checked against it."""

import re

from finetune.synth.pair import Pair, Section
from ingest.sentences import Span, sentences
from rag.generate import Generator
from rag.layout import one_line
from rag.score_norm import Script
from rag.types import Message, Sampling

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
