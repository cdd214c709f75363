"""Generation with a ChatGLM: prefill, then token by token; closing the iterator stops it.

The loop (decoding.py) is our own, so that text streams, a seed gives the same text each time, and
nothing keeps running after the reader has left. Sampling follows transformers' `generate` as upstream's `chat`
calls it: temperature, then the 50 likeliest tokens, then top-p. ChatGLM-6B also fills blanks.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Steps
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ingest.errors import UserError
from ingest.i18n import Translatable
from rag.chatglm.adapter import Adapters
from rag.chatglm.adapter_files import Contract, read_adapter
from rag.chatglm.chat import FORMATS, TEMPLATES, context_of, encode_chat, encode_text
from rag.chatglm.configuration import generation_of, stored_dtype
from rag.chatglm.decoding import Decoder, ReplyStopped
from rag.chatglm.loading import load, read_model_config
from rag.chatglm.memory import CONTEXT, MemoryBudget, Mode, check, pick
from rag.chatglm.tokenization import check_vocabulary, clean_up, open_tokenizer

REPLACEMENT = "\ufffd"
# Ends of a text that later tokens may change: the first bytes of a character (3 at most), the start
# of a word that stands for blanks in ChatGLM-6B, or a blank that `clean_up` may still remove (its
# patterns begin with a blank and have only these characters before their last).
BLANK_WORD_START = re.compile(r"<(?:n|\|[a-z_0-9]{0,8}\|?)?$")
REMOVABLE_BLANK = re.compile(r" [ 'nvr]*$")

DATE = ("[[训练时间]]", "2023年")
ROLE = ("<|assistant|>", "")
LITERALS = {1: (DATE,), 2: (DATE,), 3: (DATE, ROLE), 4: (ROLE,)}
MARK = re.compile(r"(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")
FULL_WIDTH = str.maketrans(",!:;?", "，！：；？")


class StreamDecoder:
    """Decodes ids as they come; the pieces together equal the text of all ids at once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._clean = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self._ids: list[int] = []  # the last settled id, if any, and those after it
        self._prefix = ""  # the text of the settled id
        self._start = 0  # where the next piece starts in the text after the prefix

    def push(self, index: int) -> str:
        """The text that has become certain; often empty."""
        self._ids.append(index)
        text = self._decode(self._ids)[len(self._prefix) :]
        end = self._end(text)
        piece, self._start = text[self._start : end], end
        if end == len(text) and text:
            self._settle(index)
        return clean_up(piece) if self._clean else piece

    def finish(self) -> str:
        """The rest, when no id follows."""
        piece = self._decode(self._ids)[len(self._prefix) + self._start :]
        return clean_up(piece) if self._clean else piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def _end(self, text: str) -> int:
        """The end of the part of `text` that no later id can change."""
        whole = text.rstrip(REPLACEMENT)
        end = max(len(whole), len(text) - 3)
        if word := BLANK_WORD_START.search(text, 0, end):
            end = word.start()
        if self._clean and (blank := REMOVABLE_BLANK.search(text, 0, end)):
            end = blank.start()
        return end

    def _settle(self, index: int) -> None:
        """Forget the ids before this one, unless it is blank or a part of a character. SentencePiece
        removes the blank at the start of a text, so the first id must not be blank."""
        alone = self._decode([index])
        if alone.strip() and REPLACEMENT not in alone:
            self._ids, self._prefix, self._start = [index], alone, 0


class Polisher:
    """`polish` for a stream; the pieces together equal `polish` of the whole text."""

    def __init__(self, generation: int) -> None:
        self._generation = generation
        self._raw = ""
        self._start = 0  # where the next piece starts in the polished text

    def push(self, piece: str) -> str:
        self._raw += piece
        end = len(self._raw)
        for literal, _ in LITERALS[self._generation]:
            cuts = (n for n in range(len(literal) - 1, 0, -1) if self._raw.endswith(literal[:n]))
            end = min(end, len(self._raw) - next(cuts, 0))
        if self._generation == 1 and self._raw[:end].endswith(tuple(",!:;?")):
            end -= 1  # the character after it decides
        return self._text_before(end)

    def finish(self) -> str:
        return self._text_before(None)

    def _text_before(self, end: int | None) -> str:
        text = polish(self._raw[:end], self._generation)
        piece, self._start = text[self._start :], max(self._start, len(text))
        return piece


def polish(text: str, generation: int) -> str:
    """An answer as upstream shows it: without blanks around it, and with a date for its placeholder.
    ChatGLM-6B's punctuation beside Chinese characters becomes full-width. (If ChatGLM3's answer has
    several parts, upstream shows the last one; this shows all of them.)"""
    for literal, plain in LITERALS[generation]:
        text = text.replace(literal, plain)
    text = text.strip()
    return MARK.sub(lambda mark: mark[0].translate(FULL_WIDTH), text) if generation == 1 else text


TOP_K = 50  # transformers' default when upstream was published, which upstream's `chat` uses


class SamplingLike(Protocol):
    """Sampling settings. None: the generation's default; temperature 0: the likeliest token."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float | None: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def seed(self) -> int: ...


class ChatGLMGenerator:
    """A model of any generation. `context` is its window in tokens: prompt and answer together."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.generation = generation_of(model.config)
        self.context = context_of(model.config)
        self.format = FORMATS[self.generation]
        self.decoder = Decoder(model, name=name)
        self._adapters: Adapters | None = None  # until the first one is used

    def use(self, adapter: Path | None) -> tuple[Translatable, ...]:
        """Answer with the adapter in this directory from now on; None: with the model alone.

        Returns assumptions about the adapter, to be reported to the user. Raises `UserError` if the
        adapter is damaged, was made for another model, or changes nothing."""
        notes: tuple[Translatable, ...] = ()
        if adapter or self._adapters:
            adapters = self._adapters = self._adapters or Adapters(self.model)
            if adapter and str(adapter) not in adapters.contracts:
                read = read_adapter(adapter)
                adapters.attach(read, str(adapter))
                notes = read.notes
            adapters.activate(str(adapter) if adapter else None)
        return notes

    @property
    def contract(self) -> Contract | None:
        """The contract of the active adapter."""
        return self._adapters.contract if self._adapters else None

    def encode(self, messages: Sequence[Any]) -> list[int]:
        """The ids of the prompt, in the template of the active adapter."""
        if contract := self.contract:
            messages = TEMPLATES[contract.template](messages)
        return encode_chat(messages, self.tokenizer, self.generation)

    def count(self, messages: Sequence[Any]) -> int:
        """Tokens of the prompt, including those of the conversation's format."""
        return len(self.encode(messages))

    @property
    def stop_ids(self) -> frozenset[int]:
        contract = self.contract
        ids = self.format.stop_ids(self.tokenizer)
        return frozenset(ids + (contract.stop_ids if contract else ()))

    def stream(
        self, messages: Sequence[Any], sampling: SamplingLike
    ) -> Steps[str, None, Literal["stop", "length"]]:
        """The reply piece by piece, as upstream shows it (`polish`); at its end, returns whether it has
        as many tokens as it may have. Raises `UserError` if the prompt fills the window, or if all
        scores are NaN or infinite."""
        decoder, polisher = StreamDecoder(self.tokenizer), Polisher(self.generation)
        stops = self.stop_ids
        reason: Literal["stop", "length"] = "stop"
        with suppress(ReplyStopped):
            for index in self.tokens(self.encode(messages), sampling):
                if index in stops:
                    break
                if piece := polisher.push(decoder.push(index)):
                    yield piece
            else:
                reason = "length"
        if piece := polisher.push(decoder.finish()) + polisher.finish():
            yield piece
        return reason

    def stop(self) -> None:
        """End the current reply as if it were complete, at the next layer of the model."""
        self.decoder.stop()

    def tokens(self, prompt: Sequence[int], sampling: SamplingLike) -> Iterator[int]:
        """The ids that the model writes after the prompt, stop ids included, until the window or
        `max_new_tokens` is full. Raises `ReplyStopped` after `stop`, and `UserError` as `stream`."""
        if len(prompt) >= self.context:
            raise UserError(
                "the prompt has {tokens} tokens, but the window of {name} has {context}, including "
                "the answer; shorten the prompt",
                tokens=len(prompt), name=self.name, context=self.context,
            )  # fmt: skip
        most = min(sampling.max_new_tokens, self.context - len(prompt))
        adapter = self._adapters.active if self._adapters else None
        return self.decoder.tokens(prompt, self._sampler(sampling), most, adapter)

    def _sampler(self, sampling: SamplingLike) -> Callable[[Tensor], int] | None:
        """A function from logits (V,) to a token; None for the likeliest."""
        default = self.format
        temperature = default.temperature if sampling.temperature is None else sampling.temperature
        top_p = default.top_p if sampling.top_p is None else sampling.top_p
        if not temperature:
            return None
        # On the CPU: a seed gives the same text on every device that computes the same scores.
        random = torch.Generator().manual_seed(sampling.seed)

        def draw(logits: Tensor) -> int:
            best, ids = (logits / temperature).topk(min(TOP_K, len(logits)))
            shares = best.softmax(-1).cpu()
            before = shares.cumsum(-1) - shares
            return int(ids[torch.multinomial(shares * (before < top_p), 1, generator=random)])

        return draw


def open_generator(
    directory: Path,
    *,
    quant: str = "auto",
    adapter: Path | None = None,
    progress: Callable[[float], None] | None = None,
    note: Callable[[Translatable], None] | None = None,
    reading: Callable[[float], None] | None = None,
) -> ChatGLMGenerator:
    """The generator of a model's directory. `quant` auto chooses the best mode that fits here.

    `progress` takes the share loaded, 0 to 1; `note` takes assumptions about the adapter; `reading`
    takes the share of a prompt that has been read. Raises `UserError` before any weight is read if
    there is not enough memory."""
    tokenizer = open_tokenizer(directory)
    check_vocabulary(directory, tokenizer)
    mode = _mode(directory, quant)
    options: Any = {"quant": mode.quant, "dtype": mode.dtype, "device": mode.device}
    model = load(directory, **options, progress=progress)
    generator = ChatGLMGenerator(model, tokenizer, name=directory.resolve().name)
    generator.decoder.progress = reading or generator.decoder.progress
    for assumption in generator.use(adapter):
        if note:
            note(assumption)
    return generator


def _mode(directory: Path, quant: str) -> Mode:
    config, budget = read_model_config(directory), MemoryBudget.here()
    context = min(context_of(config), CONTEXT)
    if quant == "auto" and (best := pick(config, budget, context=context)):
        return best.mode
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else stored_dtype(config)
    choice: Any = "int4" if quant == "auto" else quant
    mode = Mode(choice, device, dtype)
    check(config, mode, budget, context=context)
    return mode


SHORT, LONG = "[MASK]", "[gMASK]"
BLANK = re.compile(r"(\[g?MASK\])")


def fill(model: Any, tokenizer: Any, text: str, sampling: SamplingLike) -> Iterator[str]:
    """`text` with its blanks filled, piece by piece: `[MASK]` with a few words, `[gMASK]` with a long
    passage.

    Blanks are filled one after another (Du et al. 2022, GLM; as `fill_blanks` of upstream's
    GLM-130B), short ones first: the model sees the whole text on both sides and writes from `<sop>`
    on, at the position of the blank, until `<eop>`. `sampling` applies to each blank. Raises
    `UserError` if there is no blank, the model can't fill blanks, or the text fills its window."""
    require_filler(model.config)
    parts, blanks = split_at_blanks(text)
    writer = ChatGLMGenerator(model, tokenizer, name="ChatGLM-6B")
    shown = 0  # characters of the text before the first blank
    while blanks:
        # The model takes the first short blank, and a long one only if there is no short one.
        blank = blanks.index(SHORT) if SHORT in blanks else 0
        ids = writer.tokens(encode_blanks(parts, blanks, tokenizer), sampling)
        decoder, polisher = StreamDecoder(tokenizer), Polisher(1)
        for index in takewhile(lambda index: index != tokenizer.eos_token_id, ids):
            parts[blank] += polisher.push(decoder.push(index))
            if len(parts[0]) > shown:
                yield parts[0][shown:]
                shown = len(parts[0])
        parts[blank] += polisher.push(decoder.finish()) + polisher.finish() + parts.pop(blank + 1)
        del blanks[blank]
    yield parts[0][shown:]


def require_filler(config: PreTrainedConfig) -> None:
    """Raises `UserError` if the model of `config` does not fill blanks."""
    if (generation := generation_of(config)) != 1:
        raise UserError(
            "the model is ChatGLM of generation {generation}, which only continues text; filling "
            "blanks needs ChatGLM-6B (the first)",
            generation=generation,
        )


def split_at_blanks(text: str) -> tuple[list[str], list[str]]:
    """The texts around the blanks, and the blanks, one fewer; raises `UserError` if there is none."""
    pieces = BLANK.split(text)
    if len(pieces) == 1:
        raise UserError(
            "the text has no blank; put {short} where a few words are missing, or {long} for a whole passage",
            short=SHORT,
            long=LONG,
        )
    return pieces[::2], pieces[1::2]


def encode_blanks(parts: Sequence[str], blanks: Sequence[str], tokenizer: Any) -> list[int]:
    """The ids of the text and `<sop>`; spaces around a `[MASK]` are dropped, as by upstream."""
    ids: list[int] = []
    for before, part, after in zip(("", *blanks), parts, (*blanks, "<sop>"), strict=True):
        part = part.lstrip() if before == SHORT else part
        part = part.rstrip() if after == SHORT else part
        ids += encode_text(part, tokenizer) + tokenizer.convert_tokens_to_ids([after])
    return ids
