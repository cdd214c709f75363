"""ChatGLM's tokenizers as a tokenizer.json, which transformers and every engine read without our code.

SentencePiece's BPE joins the adjacent pair whose *joined* piece has the best score, other BPEs the
pair of the least rank. Every split of a piece into two pieces is a merge here, in the order of the
pieces, so that the two differ at most if overlapping splits give the same piece (u v w, uv = vw).
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Strip
from tokenizers.decoders import Replace as ReplaceDecoder
from tokenizers.decoders import Sequence as DecoderSequence
from tokenizers.models import BPE
from tokenizers.normalizers import Prepend, Replace, Sequence
from tokenizers.pre_tokenizers import Sequence as SplitSequence
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from ingest.errors import UserError
from rag.chatglm.chat import TOOL_4, TOOLS_4, encode_chat
from rag.chatglm.tokenization import MARKS, ROLES, set_prompt_start, splits

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
PROBE = (
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
        tokenizer_object=_bytes(ours.backend_tokenizer) if glm4 else _pieces(ours),
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
    _check(PreTrainedTokenizerFast.from_pretrained(folder), ours, generation)


def _pieces(ours: Any) -> Tokenizer:
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


def _bytes(ours: Tokenizer) -> Tokenizer:
    """GLM-4's, which also removes the marks of its template."""
    tokenizer = Tokenizer.from_str(ours.to_str())
    tokenizer.normalizer = Sequence(UNMARK)
    line = Split(Regex(rf"(?<=\n){MARK}"), behavior="removed")
    tokenizer.pre_tokenizer = SplitSequence([line, tokenizer.pre_tokenizer])
    return tokenizer


def _check(theirs: Any, ours: Any, generation: int) -> None:
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
        for chat in (PROBE[1:2], PROBE[1:], PROBE):
            ids = theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            if ids != encode_chat(chat, ours, generation):
                different.append(str(chat[0]["content"]))
    if different:
        raise UserError(
            "the tokenizer can't be written as a tokenizer.json: {text!r} would get other ids; its "
            "vocabulary is not of the kind that was published; use the model's own",
            text=different[0],
        )
