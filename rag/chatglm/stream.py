"""A generated text piece by piece: ids in, text out that never has to be taken back."""

import re
from typing import Any

from rag.chatglm.blanks import clean_up

REPLACEMENT = "\ufffd"
# Ends of a text that later words may change: the beginning of a character in bytes (3 at most), of
# a blank word that ChatGLM-6B spells out, a blank that `clean_up` may still take away (its patterns
# begin with a blank and have only these characters before their last).
UNSETTLED = re.compile(r"<(?:n|\|[a-z_0-9]{0,8}\|?)?$")
SPACED = re.compile(r" [ 'nvr]*$")

TRAINED = ("[[训练时间]]", "2023年")
LITERALS = {
    1: (TRAINED,),
    2: (TRAINED,),
    3: (TRAINED, ("<|assistant|>", "")),
    4: (("<|assistant|>", ""),),
}
MARK = re.compile(r"(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")
FULL_WIDTH = str.maketrans(",!:;?", "，！：；？")


class StreamDecoder:
    """Decodes ids as they come: the pieces joined are what decoding all ids at once gives."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._clean = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self._ids: list[int] = []  # the last settled id, if any, and what came after it
        self._settled = ""  # what the first of them decodes to
        self._given = 0  # characters given out of the text after that

    def push(self, index: int) -> str:
        """The text that is certain now and was not before; often empty."""
        self._ids.append(index)
        text = self._text()
        end = self._end(text)
        piece = text[self._given : end]
        self._given = end
        if end == len(text) and text:
            self._settle(index)
        return clean_up(piece) if self._clean else piece

    def finish(self) -> str:
        """The rest, when no id follows."""
        piece = self._text()[self._given :]
        self._given += len(piece)
        return clean_up(piece) if self._clean else piece

    def _text(self) -> str:
        text = self._tokenizer.decode(self._ids, clean_up_tokenization_spaces=False)
        return text[len(self._settled) :]

    def _end(self, text: str) -> int:
        """Up to where `text` stays as it is, whatever follows."""
        whole = text.rstrip(REPLACEMENT)
        end = max(len(whole), len(text) - 3)
        if broken := UNSETTLED.search(text, 0, end):
            end = broken.start()
        if self._clean and (blank := SPACED.search(text, 0, end)):
            end = blank.start()
        return end

    def _settle(self, index: int) -> None:
        """Forget the ids before this one, which shows that the text has begun.

        SentencePiece takes the blank off a text's beginning, so a window must begin with an id
        that is more than blanks.
        """
        alone = self._tokenizer.decode([index], clean_up_tokenization_spaces=False)
        if alone.strip() and REPLACEMENT not in alone:
            self._ids, self._settled, self._given = [index], alone, 0


class Polisher:
    """`polish`, while the text comes: the pieces joined are what `polish` makes of all of it."""

    def __init__(self, generation: int) -> None:
        self._generation = generation
        self._raw = ""
        self._given = 0

    def push(self, piece: str) -> str:
        self._raw += piece
        end = len(self._raw)
        for literal, _ in LITERALS[self._generation]:
            begun = (n for n in range(len(literal) - 1, 0, -1) if self._raw.endswith(literal[:n]))
            end = min(end, len(self._raw) - next(begun, 0))
        if self._generation == 1 and self._raw[:end].endswith(tuple(",!:;?")):
            end -= 1  # the character after it decides
        return self._new(end)

    def finish(self) -> str:
        return self._new(len(self._raw))

    def _new(self, end: int) -> str:
        text = polish(self._raw[:end], self._generation)
        piece, self._given = text[self._given :], max(self._given, len(text))
        return piece


def polish(text: str, generation: int) -> str:
    """An answer as upstream shows it: no blanks around it, a date for its placeholder.

    ChatGLM-6B's marks beside Chinese characters become full-width ones. (Upstream does this to the
    whole text; it shows the last of several parts of ChatGLM3's answer, this all of them.)
    """
    for literal, plain in LITERALS[generation]:
        text = text.replace(literal, plain)
    text = text.strip()
    return MARK.sub(lambda mark: mark[0].translate(FULL_WIDTH), text) if generation == 1 else text
