"""Blanks of ChatGLM-6B's text: line ends, tabs and runs of blanks are words of its vocabulary."""

import re

MAX_BLANKS = 80
# As transformers 4, `clean_up_tokenization`: each without the blank before it, one after another.
CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def with_blank_words(text: str) -> str:
    """`text` with these words for them, as SentencePiece is given it."""
    return re.sub(" {2,}", _blanks, text.replace("\n", "<n>").replace("\t", "<|tab|>"))


def without_blank_words(text: str) -> str:
    """The inverse."""
    text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
    return re.sub(r"<\|blank_([2-9]|[1-7]\d|80)\|>", lambda run: " " * int(run[1]), text)


def clean_up(text: str) -> str:
    """`text` without blanks before punctuation and English endings, as ChatGLM-6B decodes."""
    for spaced in CLEANED:
        text = text.replace(spaced, spaced.strip())
    return text


def _blanks(run: re.Match[str]) -> str:
    """A run of blanks as `<|blank_k|>` words, the longest first; a single one stays."""
    whole, rest = divmod(len(run[0]), MAX_BLANKS)
    last = f"<|blank_{rest}|>" if rest > 1 else " " * rest
    return f"<|blank_{MAX_BLANKS}|>" * whole + last
