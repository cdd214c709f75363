"""A ChatGLM that writes: prefill, then token by token, stopped at any time by closing the iterator.

The loop is our own, so that text streams, a seed gives one text on every generation, and nothing
runs on after the reader has left. Sampling follows transformers' `generate` as upstream's `chat`
calls it: temperature, then the 50 likeliest, then top-p.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ingest.errors import UserError
from rag.chatglm.adapter import Adapters
from rag.chatglm.adapter_files import read_adapter
from rag.chatglm.chat import FORMATS, TEMPLATES, context_of, encode_chat
from rag.chatglm.configuration import CACHE, generation_of, stored_dtype
from rag.chatglm.loading import load, read_config
from rag.chatglm.memory import CONTEXT, Mode, Room, check, pick
from rag.chatglm.tokenization import clean_up, open_tokenizer

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


TOP_K = 50
"""transformers' default when upstream was published; upstream's `chat` leaves it so."""
SAFE = 5
"""The token that upstream's `InvalidScoreLogitsProcessor` takes where scores are NaN or infinite."""


class Sampled(Protocol):
    """How words are picked; None: the generation's own default, temperature 0: the likeliest."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float | None: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def seed(self) -> int: ...


class Stopped(Exception):
    """The reply under way was asked to end."""


class ChatGLMGenerator:
    """A model of any generation behind `stream`. `context` counts prompt and answer together."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.generation = generation_of(model.config)
        self.context = context_of(model.config)
        self.format = FORMATS[self.generation]
        self.adapters = Adapters(model)
        self._stop = Event()
        # Reading a long prompt takes a minute on a CPU: between layers is where it can be left.
        for layer in max(_lists(model), key=len, default=()):
            layer.register_forward_pre_hook(self._look)

    def use(self, adapter: Path | None) -> tuple[str, ...]:
        """Answer with the adapter in this directory from now on; None: with the model alone.

        What had to be assumed of the adapter comes back, to be told to the person.
        """
        name, notes = str(adapter) if adapter else None, ()
        if adapter and name and name not in self.adapters.contracts:
            read = read_adapter(adapter)
            self.adapters.attach(read, name)
            notes = read.notes
        self.adapters.activate(name)
        return notes

    def encode(self, messages: Sequence[Any]) -> list[int]:
        """The ids of the prompt, as the active adapter was trained to see it."""
        if self.adapters.active:
            contract = self.adapters.contracts[self.adapters.active]
            messages = TEMPLATES[contract.template](messages)
        return encode_chat(messages, self.tokenizer, self.generation)

    def count(self, messages: Sequence[Any]) -> int:
        """Tokens of the prompt, marks of the conversation's format included."""
        return len(self.encode(messages))

    @property
    def stop_ids(self) -> frozenset[int]:
        own = self.format.stop_ids(self.tokenizer)
        active = self.adapters.active
        return frozenset(own) | frozenset(
            self.adapters.contracts[active].stop_ids if active else ()
        )

    def stream(self, messages: Sequence[Any], sampling: Sampled) -> Iterator[str]:
        """The reply piece by piece, as upstream shows it (`stream.polish`).

        `UserError` where the prompt fills the window, or the model computes no numbers.
        """
        decoder, polisher = StreamDecoder(self.tokenizer), Polisher(self.generation)
        stops = self.stop_ids
        with suppress(Stopped):
            for index in self.tokens(self.encode(messages), sampling):
                if index in stops:
                    break
                if piece := polisher.push(decoder.push(index)):
                    yield piece
        if piece := polisher.push(decoder.finish()) + polisher.finish():
            yield piece

    def stop(self) -> None:
        """End the reply under way as if it were complete, at the next layer of the model."""
        self._stop.set()

    def _look(self, *_: object) -> None:
        if self._stop.is_set():
            raise Stopped

    @torch.inference_mode()
    def tokens(self, prompt: Sequence[int], sampling: Sampled) -> Iterator[int]:
        """What the model writes behind the prompt, id by id, stop ids too, as long as there is room.

        Raises `Stopped` after `stop`.
        """
        self._stop.clear()
        if len(prompt) >= self.context:
            raise UserError(
                "the prompt has {prompt_count} tokens, but the window of {name} holds {context}, the "
                "answer included; shorten it",
                prompt_count=len(prompt),
                name=self.name,
                context=self.context,
            )
        ids = torch.tensor([prompt], device=self.model.device)  # [1, S]
        cache, fed = DynamicCache(), 0
        pick_one = self._picker(sampling)
        for _ in range(min(sampling.max_new_tokens, self.context - len(prompt))):
            logits = self._step(ids, fed, cache)
            fed = ids.shape[1]
            index = pick_one(self._checked(logits))
            yield index
            ids = torch.cat([ids, ids.new_tensor([[index]])], dim=1)

    def _step(self, ids: Tensor, fed: int, cache: DynamicCache) -> Tensor:
        """The last position's logits, (V,) float32. The first `fed` ids are in the cache."""
        positions = None
        if self.generation == 1:  # 2-D: they depend on the whole sequence
            positions = self.model.positions(ids, prefer_mask=True)[..., fed:]
        out = self.model(
            ids[:, fed:], position_ids=positions, use_cache=True, logits_to_keep=1, **{CACHE: cache}
        )
        return out.logits[0, -1].float()

    def _checked(self, logits: Tensor) -> Tensor:
        """As upstream: where a score is NaN or infinite, a harmless token instead."""
        finite = torch.isfinite(logits)
        if finite.all():
            return logits
        if not finite.any():
            raise UserError(
                "{name} computes NaN instead of scores: its weights are damaged, or its precision "
                "too small; load it again with --quant none, or fetch the files again",
                name=self.name,
            )
        safe = torch.zeros_like(logits)
        safe[SAFE] = 5e4
        return safe

    def _picker(self, sampling: Sampled) -> Callable[[Tensor], int]:
        """Logits (V,) -> a token."""
        own = self.format
        temperature = own.temperature if sampling.temperature is None else sampling.temperature
        top_p = own.top_p if sampling.top_p is None else sampling.top_p
        if not temperature:
            return lambda logits: int(logits.argmax())
        # Drawn on the CPU: a seed gives the same text on every device that scores alike.
        dice = torch.Generator().manual_seed(sampling.seed)

        def draw(logits: Tensor) -> int:
            best, ids = (logits / temperature).topk(min(TOP_K, len(logits)))
            shares = best.softmax(-1).cpu()
            before = shares.cumsum(-1) - shares
            return int(ids[torch.multinomial(shares * (before < top_p), 1, generator=dice)])

        return draw


def _lists(model: Any) -> list[nn.ModuleList]:
    return [module for module in model.modules() if isinstance(module, nn.ModuleList)]


def open_generator(
    directory: Path,
    *,
    quant: str = "auto",
    adapter: Path | None = None,
    progress: Callable[[float], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> ChatGLMGenerator:
    """The generator of a model's directory. `quant` auto takes the mode that fits here.

    `progress` is told the share loaded, 0 to 1; `note` what had to be assumed of the adapter. `UserError` before any weight is read where memory
    does not suffice, with the figures.
    """
    tokenizer = open_tokenizer(directory)
    mode = _mode(directory, quant)
    model = load(
        directory, quant=mode.quant, dtype=mode.dtype, device=mode.device, progress=progress
    )
    generator = ChatGLMGenerator(model, tokenizer, name=directory.resolve().name)
    if adapter:
        for assumed in generator.use(adapter):
            if note:
                note(assumed)
    return generator


def _mode(directory: Path, quant: str) -> Mode:
    config, room = read_config(directory), Room.here()
    context = min(context_of(config), CONTEXT)
    if quant == "auto" and (best := pick(config, room, context=context)):
        return best.mode
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else stored_dtype(config)
    chosen: Any = "int4" if quant == "auto" else quant
    needed = check(config, chosen, device=device, dtype=dtype, room=room, context=context)
    return replace(needed.mode, quant=chosen)
