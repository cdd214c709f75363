"""ChatGLM2, ChatGLM3 and GLM-4-9B-chat in transformers' own `glm` layout, for engines without our code.

Tensors are written one by one, and codes become floats. The tokenizer becomes a tokenizer.json, which
must give the same ids as the model's own.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Strip
from tokenizers.decoders import Replace as ReplaceDecoder
from tokenizers.decoders import Sequence as DecoderSequence
from tokenizers.models import BPE
from tokenizers.normalizers import Prepend, Replace, Sequence
from tokenizers.pre_tokenizers import Sequence as SplitSequence
from tokenizers.pre_tokenizers import Split
from torch import Tensor, nn
from transformers import GenerationConfig, Glm4Config, GlmConfig, PreTrainedConfig, PreTrainedTokenizerFast

from ingest.errors import UserError
from ingest.store.atomic import new_folder
from rag.chatglm.adapter import check_base
from rag.chatglm.adapter_files import NORM, Adapter
from rag.chatglm.chat import FORMATS, TOOL_4, TOOLS_4, context_of, encode_chat
from rag.chatglm.configuration import ChatGLM2Config, generation_of, stored_dtype
from rag.chatglm.loading import Shards, copy_side_files, empty, read_model_config
from rag.chatglm.lora import Factors, layer_factors, merge_weight
from rag.chatglm.quantize import PackedWeight, dequantize
from rag.chatglm.tokenization import MARKS, ROLES, check_vocabulary, open_tokenizer, set_prompt_start, splits
from rag.chatglm.weights import Checkpoint, WeightSource, pieces

LOST = 0.5
"""The largest share of an adapter's change that rounding may take; above it the merged model would be
nearer to the base."""


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What became of an adapter in a model that was written."""

    layers: int  # linear layers that it changed
    dtype: torch.dtype  # of the weights
    lost: float  # the norm of what rounding to `dtype` changes, over that of the adapter's change


class WeightMerger:
    """Adds an adapter to weights and sums up the rounding errors."""

    def __init__(self, parts: dict[str, Factors], dtype: torch.dtype | None) -> None:
        self.parts, self.dtype = parts, dtype
        self.used = dtype or torch.float32  # the type of the weight that was merged last
        self._errors = self._changes = 0.0  # sums of squares

    @property
    def lost(self) -> float:
        """The norm of all rounding errors over the norm of the adapter's change."""
        return (self._errors / self._changes) ** 0.5 if self._changes else 0.0

    def report(self) -> "MergeReport":
        """Raises `UserError` if more than `LOST` is lost."""
        if self.lost > LOST:
            raise UserError(
                "the merged model is not kept: rounding to {dtype} takes {lost:.0%} of what the adapter "
                "changes (allowed: {most:.0%}); use --dtype float32",
                dtype=dtype_name(self.used), lost=self.lost, most=LOST,
            )  # fmt: skip
        return MergeReport(len(self.parts), self.used, self.lost)

    def __call__(self, path: str, piece: dict[str, Any]) -> dict[str, Tensor]:
        """A module's tensors with the adapter's change, in `dtype`, or as stored if that is None."""
        part = self.parts.get(path)
        if part is None:
            return {kind: self._rounded(path, tensor, tensor) for kind, tensor in piece.items()}
        exact = merge_weight(piece["weight"], part)
        weight = self._rounded(path, exact, piece["weight"])
        self.used = weight.dtype
        self._errors += float((weight.float() - exact).square().sum())
        self._changes += float((exact - piece["weight"].float()).square().sum())
        tensors = {"weight": weight}
        if "bias" in piece:
            bias = piece["bias"].float() + (0 if part.bias is None else part.bias)
            tensors["bias"] = self._rounded(path, bias, piece["bias"])
        elif part.bias is not None:
            raise UserError(
                "the adapter adds a bias to {path}, which has none in this model: the merged model "
                "has no place for it; use the adapter beside the model",
                path=path,
            )
        return tensors

    def _rounded(self, path: str, tensor: Tensor, stored: Tensor) -> Tensor:
        rounded = tensor.to(self.dtype or stored.dtype)
        if rounded is not stored and not all(value.isfinite() for value in rounded.aminmax()):
            raise UserError(
                "{path}: a weight of {max:.3g} is too large for {name}; use --dtype bfloat16 or "
                "--dtype float32",
                path=path, max=float(tensor.abs().max()), name=dtype_name(rounded.dtype),
            )  # fmt: skip
        return rounded


def dtype_name(dtype: torch.dtype) -> str:
    """The name that the command line takes, such as `float16`."""
    return str(dtype).removeprefix("torch.")


def empty_base(source: WeightSource, adapter: Adapter | None) -> Any:
    """The model without weights except for its normalisations, by which `adapter` knows its base.
    Raises `UserError` as `check_base`."""
    model = empty(source.config)
    if adapter:
        for name in [name for name, _ in model.named_parameters() if NORM.search(name)]:
            path, _, kind = name.rpartition(".")
            value = nn.Parameter(source.read(path, kind), requires_grad=False)
            setattr(model.get_submodule(path), kind, value)
        check_base(adapter, model)
    return model


# Fields of the config that `glm` has too; `_write_configs` adds the rest.
SAME = (
    "attention_bias", "attention_dropout", "head_dim", "hidden_act", "hidden_size",
    "initializer_range", "intermediate_size", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "pad_token_id", "rms_norm_eps", "rope_parameters",
    "tie_word_embeddings", "use_cache", "vocab_size",
)  # fmt: skip
TERMS = ("*LICENSE*", "NOTICE*")
SIDE_BYTES = 64 << 20  # that all files beside the weights take at most


def export(
    directory: Path,
    target: Path,
    *,
    adapter: Adapter | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[float], None] | None = None,
) -> MergeReport:
    """Write `directory`'s model, with the LoRA `adapter` in it, to the new folder `target`.

    generation_config.json holds the adapter's stop ids; no file can hold its template. `dtype` is that
    of all weights; None: config.json's. `progress` takes the share written, 0 to 1. Raises `UserError`
    if the model has no such form or has it already, the disk is too small, the adapter does not fit,
    or rounding takes most of it; then nothing is left."""
    config = read_model_config(directory)
    check_exportable(directory, config)
    source = WeightSource.open(directory, config)
    generation = generation_of(config)
    tokenizer = open_tokenizer(directory)
    check_vocabulary(directory, tokenizer)
    if adapter and adapter.kind == "prefix":
        raise UserError(
            "{adapter} is a P-Tuning prefix, which other engines have no place for; use it "
            "beside the model, in rag ask and rag serve",
            adapter=adapter.source,
        )
    dtype = dtype or stored_dtype(config)
    model = empty_base(source, adapter)
    _check_disk_space(target, model, dtype)
    with new_folder(target) as work:
        stops = FORMATS[generation].stop_ids(tokenizer)
        _write_configs(config, stops + (adapter.contract.stop_ids if adapter else ()), dtype, work)
        write_tokenizer(tokenizer, generation, context_of(config), work)
        copy_side_files(directory, work, TERMS)
        lora = adapter and adapter.config
        parts = dict(layer_factors(model, adapter.modules, lora)) if adapter and lora else {}
        shards = Shards(work)
        merger = WeightMerger(parts, dtype)
        for path, piece in pieces(model, source, progress=progress):
            for kind, value in piece.items():
                piece[kind] = dequantize(value) if isinstance(value, PackedWeight) else value
            for kind, tensor in merger(path, piece).items():
                shards.add(f"{path}.{kind}", tensor)
        shards.close()
        Checkpoint.open(work)  # every tensor of the index is in its file
        return merger.report()


def check_exportable(directory: Path, config: PreTrainedConfig) -> None:
    """Raises `UserError` if the model has no `glm` form, or has it already."""
    if isinstance(config, ChatGLM2Config):
        return
    if isinstance(config, (GlmConfig, Glm4Config)):
        raise UserError(
            "{directory} is in transformers' own layout already; give it to the engine as it is "
            "(to make an adapter part of it: rag finetune merge)",
            directory=directory,
        )
    raise UserError(
        "{directory} is ChatGLM-6B, an architecture that neither transformers nor vLLM has; "
        "serve it with: rag serve --model {directory} (its /v1 answers from your knowledge "
        "bases)",
        directory=directory,
    )


def _check_disk_space(target: Path, model: Any, dtype: torch.dtype) -> None:
    """Raises `UserError` if the disk is too small for all files."""
    needed = model.num_parameters() * dtype.itemsize + SIDE_BYTES
    parent = next(folder for folder in target.resolve().parents if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise UserError(
            "{parent} has {free:.1f} GB left and {name} takes {needed:.1f} GB; free some space, or "
            "give a folder on another disk",
            parent=parent, free=free / 1e9, name=target.name, needed=needed / 1e9,
        )  # fmt: skip


def _write_configs(config: PreTrainedConfig, stops: tuple[int, ...], dtype: torch.dtype, work: Path) -> None:
    """Write config.json and generation_config.json so that transformers 4 can read them too."""
    glm = GlmConfig(
        **{name: getattr(config, name) for name in SAME},
        architectures=["GlmForCausalLM"],
        dtype=dtype,
        eos_token_id=list(stops),
        max_position_embeddings=context_of(config),
    )
    glm.save_pretrained(work)
    path, rope = work / "config.json", config.rope_parameters
    # Only transformers 5 reads `rope_parameters`; others would use the default base for the 32k
    # models and GLM-4.
    old = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor")}
    data = json.loads(path.read_text("utf-8")) | old
    path.write_text(json.dumps(data, indent=2) + "\n", "utf-8")
    chat_format = FORMATS[generation_of(config)]
    GenerationConfig(
        do_sample=True,
        temperature=chat_format.temperature,
        top_p=chat_format.top_p,
        eos_token_id=list(stops),
        pad_token_id=config.pad_token_id,
    ).save_pretrained(work)


# SentencePiece's BPE joins the adjacent pair whose *joined* piece has the best score, other BPEs the
# pair of the least rank. Every split of a piece into two pieces is a merge here, in the order of the
# pieces, so that the two differ at most if overlapping splits give the same piece (u v w, uv = vw).

MARK = "\ufdd0"
"""A noncharacter of Unicode, which texts must not contain. Templates break control tokens with it."""
UNMARK = [Replace(f"{letter}{MARK}", letter) for letter in "<["]


def template_of(generation: int) -> str:
    """The chat template of ChatGLM2, ChatGLM3 or GLM-4 (2, 3, 4), in transformers' Jinja.

    It builds the same prompts as `encode_chat`. ChatGLM2's keeps its state in a namespace, since a
    sandboxed template can't append to lists. The others encode a role's line and its text separately:
    SentencePiece starts each text with a blank, of which the tokenizer itself adds only the first,
    and GLM-4's tokenizer starts a new encoding at a mark after a line's end."""
    folder = Path(__file__).with_name("templates")
    names = ("checks", {2: "chatglm2", 3: "chatglm3", 4: "glm4"}[generation])
    checks, body = ((folder / f"{name}.jinja").read_text("utf-8").rstrip("\n") for name in names)
    if generation < 4:
        return checks + body
    before_name, rest = TOOL_4.split("{name}")
    before_schema, after = rest.split("{schema}")
    texts = {
        "TOOLS": TOOLS_4, "BEFORE_NAME": before_name, "BEFORE_SCHEMA": before_schema, "AFTER": after,
    }  # fmt: skip
    sets = (f"{{%- set {name} = {text!r} -%}}" for name, text in texts.items())
    return checks + "".join(sets) + body


BLANK = "▁"  # SentencePiece's
NAMES = {"sop": "<sop>", "eop": "<eop>"}
"""Special tokens with other names in the export: `sop` would match in "philosophy"."""
PROBE_CHAT = (
    {"role": "system", "content": "  只用中文。<|user|>[gMASK] sop</s>"},
    {"role": "user", "content": "你好\n\n世界 "},
    {"role": "assistant", "content": "\n Hi, 3.14 🙂"},
    {"role": "user", "content": "\u3000philosophy<sop>\t\x00"},
)


def write_tokenizer(ours: Any, generation: int, length: int, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, read them back, compare.

    `ours` is the tokenizer of ChatGLM2, ChatGLM3 or GLM-4, `length` the model's window in tokens.
    Raises `UserError` if a word of the vocabulary or a prompt gets other ids than from `ours`."""
    glm4 = generation == 4
    end = "<|endoftext|>" if glm4 else "</s>"
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=_glm4_tokenizer(ours.backend_tokenizer) if glm4 else _sentencepiece_tokenizer(ours),
        eos_token=end,
        pad_token=end if glm4 else "<unk>",
        **({} if glm4 else {"unk_token": "<unk>"}),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=length,
        chat_template=template_of(generation),
    )
    theirs.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    # transformers 5 writes another name, which 4 does not have; both have this one.
    config = json.loads(path.read_text("utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    _check_tokenizer(PreTrainedTokenizerFast.from_pretrained(folder), ours, generation)


def _sentencepiece_tokenizer(ours: Any) -> Tokenizer:
    """ChatGLM2's and 3's: SentencePiece's pieces, then the special tokens."""
    sp = ours.sp
    vocab = {sp.id_to_piece(index): index for index in range(sp.get_piece_size())}
    other = (sp.is_control, sp.is_unknown, sp.is_byte)
    words = {piece for piece, index in vocab.items() if not any(kind(index) for kind in other)}
    merges = list(splits(words, vocab))
    model = BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=False)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = Sequence([*UNMARK, Prepend(BLANK), Replace(" ", BLANK)])
    tokenizer.decoder = DecoderSequence(
        [ReplaceDecoder(BLANK, " "), ByteFallback(), Fuse(), Strip(" ", 1, 0)]
    )
    specials = MARKS if ours.generation == 2 else MARKS + ROLES
    names = ["<unk>", "<s>", "</s>", *(NAMES.get(name, name) for name in specials)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    set_prompt_start(tokenizer, "</s>")
    return tokenizer


def _glm4_tokenizer(ours: Tokenizer) -> Tokenizer:
    """GLM-4's, which also removes the marks of its template."""
    tokenizer = Tokenizer.from_str(ours.to_str())
    tokenizer.normalizer = Sequence(UNMARK)
    line = Split(Regex(rf"(?<=\n){MARK}"), behavior="removed")
    tokenizer.pre_tokenizer = SplitSequence([line, tokenizer.pre_tokenizer])
    return tokenizer


def _check_tokenizer(theirs: Any, ours: Any, generation: int) -> None:
    """Raises `UserError` if they differ."""
    words: list[str] = list(ours.get_vocab())
    names = {NAMES.get(word, word) for word in words} if generation < 4 else set(words)
    different = sorted(names ^ set(theirs.get_vocab()))
    if not different and generation < 4:
        texts = [word.replace(BLANK, " ") for word in words]
        rows = theirs(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        pairs = zip(texts, rows, strict=True)
        different = [text for text, ids in pairs if ids != ours.encode_data(text)]
    if not different:
        for chat in (PROBE_CHAT[1:2], PROBE_CHAT[1:], PROBE_CHAT):
            ids = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            if ids != encode_chat(chat, ours, generation):
                different.append(str(chat[0]["content"]))
    if different:
        raise UserError(
            "the tokenizer can't be written as a tokenizer.json: {text!r} would get other ids; its "
            "vocabulary is not of the kind that was published; use the model's own",
            text=different[0],
        )
