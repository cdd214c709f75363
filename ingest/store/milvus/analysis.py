"""Text as Milvus's analyzers get it: folded as everywhere, and without what they would keep of it.

Chinese words are left to Milvus's jieba, which would cut those of other scripts into letters. These,
and pairs of characters, come as a word of letters and digits each, which every tokenizer leaves whole.
"""

from collections.abc import Iterator

from ingest.normalize import LONGEST, RUN, fold, pairs, words
from ingest.normalize import bigrams as pairs_of
from ingest.store.milvus.schema import MOST_BYTES
from ingest.store.protocol import Field


def analysed(text: str, field: Field) -> str:
    """What the field of a chunk, or a question to it, holds; "" where there is no word.

    Of a text of more than 65,535 bytes the beginning.
    """
    if field == "words":
        said = " ".join(_runs(fold(text)))
    else:
        said = " ".join(map(spelled, pairs_of(text)))
    return said.encode()[:MOST_BYTES].decode(errors="ignore")


def asked(text: str, field: Field) -> str:
    """The same for a question, in which a word said twice counts once."""
    return " ".join(dict.fromkeys(analysed(text, field).split()))


def term(folded: str, field: Field) -> str:
    """One folded term as a question."""
    run = RUN.fullmatch(folded)
    return folded if field == "words" and run and run["han"] else spelled(folded)


def _runs(folded: str) -> Iterator[str]:
    for run in RUN.finditer(folded):
        if run["han"]:
            yield run[0]
        else:
            yield from map(spelled, pairs(run[0]) if run["other"] else (run[0][:LONGEST],))


def tokens(said: str, field: Field) -> list[str]:
    """What an analyzer makes of `analysed` text, near enough to count."""
    return words(said) if field == "words" else said.split()


def spelled(folded: str) -> str:
    """A pair of characters, or a word, as one word of ASCII: `试用` -> `u8bd5u7528`."""
    if folded.isascii() and folded.isalnum():
        return folded
    return "".join(f"u{ord(character):x}" for character in folded)
