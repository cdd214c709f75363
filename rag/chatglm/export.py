"""ChatGLM2, ChatGLM3 and GLM-4-9B-chat in transformers' own `glm` layout, for engines without our code.

Tensors are written one by one, and codes become floats. The tokenizer becomes a tokenizer.json. The
result is read back and must answer a probe as the source does before the folder gets its name.
"""

import json
import shutil
from collections.abc import Callable, Iterator
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
from torch.nn import functional
from transformers import GenerationConfig, Glm4Config, GlmConfig, PreTrainedConfig, PreTrainedTokenizerFast

from ingest.errors import UserError
from ingest.i18n import Translatable
from ingest.store.atomic import new_folder
from rag.chatglm.adapter import probe, probe_logits
from rag.chatglm.adapter_files import Adapter, Contract, read_adapter
from rag.chatglm.chat import FORMATS, TOOL_4, TOOLS_4, context_of, encode_chat
from rag.chatglm.configuration import ChatGLM2Config, generation_of, stored_dtype
from rag.chatglm.loading import Shards, copy_side_files, empty, read_model_config
from rag.chatglm.lora import Factors, layer_factors, merge_weight
from rag.chatglm.quantize import PackedWeight, dequantize
from rag.chatglm.tokenization import MARKS, ROLES, check_vocabulary, open_tokenizer, set_prompt_start, splits
from rag.chatglm.weights import WeightSource, codes_of, embedding_path, pieces


class WeightMerger:
    """Adds an adapter to weights and sums up the rounding errors."""

    def __init__(self, parts: dict[str, Factors], dtype: torch.dtype | None) -> None:
        self.parts, self.dtype = parts, dtype
        self.used: torch.dtype = torch.float32  # of the weight merged last
        self._errors = self._total = 0.0  # sums of squares

    @property
    def rounding(self) -> float:
        """The norm of all rounding errors over the norm of the merged weights."""
        return (self._errors / self._total) ** 0.5 if self._total else 0.0

    def __call__(self, path: str, piece: dict[str, Any]) -> dict[str, Tensor]:
        """A module's tensors with the adapter's change, in `dtype`, or as stored if that is None."""
        part = self.parts.get(path)
        if part is None:
            return {kind: self._rounded(path, tensor, tensor) for kind, tensor in piece.items()}
        exact = merge_weight(piece["weight"], part)
        weight = self._rounded(path, exact, piece["weight"])
        self.used = weight.dtype
        self._errors += float((weight.float() - exact).square().sum())
        self._total += float(exact.square().sum())
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


TOKENS = 32  # length of the prompt whose logits are compared
BANDS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The largest `error` that is allowed for weights of each precision."""
ROWS = 1024  # of a weight that are held in float32 at a time


class ReadLinear(nn.Module):
    """A linear layer whose float32 weight is read from the checkpoint at each use."""

    def __init__(self, linear: nn.Linear, source: WeightSource, path: str, origin: str) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.source, self.origin, self.bias = source, origin, None
        if linear.bias is not None:
            self.bias = nn.Parameter(source.read(path, "bias").float(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """[out, in]"""
        return torch.cat(list(self._rows()))

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Linear; some rows of the weight at a time, so that no matrix is held in float32."""
        output = torch.cat([functional.linear(x, rows) for rows in self._rows()], dim=-1)
        return output if self.bias is None else output + self.bias

    def _rows(self) -> Iterator[Tensor]:
        """The weight in float32, some rows at a time."""
        packed = codes_of(self.origin, (self.out_features, self.in_features), self.source)
        if packed is None:
            yield from map(Tensor.float, self.source.read(self.origin, "weight").split(ROWS))
            return
        for codes, scales in zip(packed.codes.split(ROWS), packed.scales.split(ROWS), strict=True):
            shape = (len(codes), self.in_features)
            yield dequantize(PackedWeight(codes, scales, packed.bits, packed.block, shape))


class ReadEmbedding(nn.Module):
    """An embedding that reads only the rows that are looked up."""

    def __init__(self, source: WeightSource, path: str) -> None:
        super().__init__()
        self.source, self.path = source, path

    def forward(self, ids: Tensor) -> Tensor:
        return self.source.read(self.path, "weight")[ids].float()


def read_model(directory: Path) -> Any:
    """The model in float32 on the CPU, whose weights are read while it computes. Linear layers may be
    stored as codes; embeddings may not."""
    config = read_model_config(directory)
    source = WeightSource.open(directory, config)
    model = empty(config).eval()
    embedding = embedding_path(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Embedding):
            model.set_submodule(path, ReadEmbedding(source, path))
        elif isinstance(module, nn.Linear):
            tied = path == "lm_head" and config.tie_word_embeddings
            model.set_submodule(path, ReadLinear(module, source, path, embedding if tied else path))
        else:
            for kind, _ in list(module.named_parameters(recurse=False)):
                value = source.read(path, kind).float()
                setattr(module, kind, nn.Parameter(value, requires_grad=False))
    return model


def error(logits: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of `expected`; infinite if a logit is not finite."""
    if not logits.isfinite().all():
        return torch.inf
    return float((logits - expected).norm() / expected.norm())


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a probe's logits are from the expected ones; norms are over all positions."""

    error: float  # the difference over the norm of the logits: `error`
    lost: float  # the difference over the norm of the adapter's change

    @classmethod
    def of(cls, logits: Tensor, expected: Tensor, before: Tensor) -> "Parity":
        """`before` are the logits without the adapter. Logits that are not finite are infinitely far."""
        difference = error(logits, expected)
        return cls(difference, difference * float(expected.norm() / (expected - before).norm()))


# Fields of the config that `glm` has too; `_write_configs` adds the rest.
SAME = (
    "attention_bias", "attention_dropout", "head_dim", "hidden_act", "hidden_size",
    "initializer_range", "intermediate_size", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "pad_token_id", "rms_norm_eps", "rope_parameters",
    "tie_word_embeddings", "use_cache", "vocab_size",
)  # fmt: skip
TERMS = ("*LICENSE*", "NOTICE*")
SIDE_BYTES = 64 << 20  # that all files beside the weights take at most


@dataclass(frozen=True, slots=True)
class ExportReport:
    generation: int
    dtype: torch.dtype
    error: float  # the difference of a probe's logits over their norm
    layers: int  # linear layers that the adapter changed
    contract: Contract | None
    """The adapter's. generation_config.json holds its stop ids; no file can hold its template."""
    notes: tuple[Translatable, ...] = ()
    """Assumptions about the adapter, to be reported to the user."""


def export(
    directory: Path,
    target: Path,
    *,
    adapter: Path | None = None,
    dtype: torch.dtype | None = None,
    alpha: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> ExportReport:
    """Write `directory`'s model, with the LoRA `adapter` in it, to the new folder `target`.

    `dtype` is that of all weights; None: config.json's. `alpha` is `read_adapter`'s. `progress`
    takes the share written, 0 to 1. Raises `UserError` if the model has no such form or has it
    already, the disk is too small, the adapter does not fit, or the written model answers a probe
    differently; then nothing is left."""
    config = read_model_config(directory)
    check_exportable(directory, config)
    source = WeightSource.open(directory, config)
    generation = generation_of(config)
    tokenizer = open_tokenizer(directory)
    check_vocabulary(directory, tokenizer)
    read = read_adapter(adapter, alpha=alpha) if adapter else None
    if read and read.kind == "prefix":
        raise UserError(
            "{adapter} is a P-Tuning prefix, which other engines have no place for; use it "
            "beside the model, in rag ask and rag serve",
            adapter=adapter,
        )
    dtype = dtype or stored_dtype(config)
    model = empty(config)
    _check_disk_space(target, model, dtype)
    with new_folder(target) as work:
        stops = FORMATS[generation].stop_ids(tokenizer)
        _write_configs(config, stops + (read.contract.stop_ids if read else ()), dtype, work)
        write_tokenizer(tokenizer, generation, context_of(config), work)
        copy_side_files(directory, work, TERMS)
        _, expected = answers(directory, read)
        lora = read and read.config
        parts = dict(layer_factors(model, read.modules, lora)) if read and lora else {}
        shards = Shards(work)
        merger = WeightMerger(parts, dtype)
        for path, piece in pieces(model, source, progress=progress):
            for kind, value in piece.items():
                piece[kind] = dequantize(value) if isinstance(value, PackedWeight) else value
            for kind, tensor in merger(path, piece).items():
                shards.add(f"{path}.{kind}", tensor)
        shards.close()
        difference = error(probe_logits(read_model(work), TOKENS), expected)
        band = BANDS.get(dtype, BANDS[torch.bfloat16])
        if difference > band:
            raise UserError(
                "the exported model is not kept: its logits differ from the source's by {off:.1e} "
                "(allowed in {dtype}: {band:g}){out}",
                off=difference,
                dtype=dtype_name(dtype),
                band=band,
                out="" if dtype == torch.float32 else Translatable("; use --dtype float32"),
            )
    contract, notes = (read.contract, read.notes) if read else (None, ())
    return ExportReport(generation, dtype, difference, len(parts), contract, notes)


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


def answers(directory: Path, adapter: Adapter | None) -> tuple[Tensor, Tensor]:
    """The probe's logits [1, S, V] of the model, and with the adapter (None: the same again). Raises
    `UserError` as `probe`."""
    base = read_model(directory)
    if adapter is None:
        alone = probe_logits(base, TOKENS)
        return alone, alone
    _, alone, changed = probe(base, adapter, TOKENS)
    return alone, changed


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
