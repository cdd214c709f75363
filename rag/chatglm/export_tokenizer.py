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
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from ingest.errors import UserError
from rag.chatglm.chat import TOOL_4, TOOLS_4, encode_chat
from rag.chatglm.tokenization import MARKS, ROLES, splits

MARK = "\ufdd0"
"""A noncharacter of Unicode, which texts must not contain."""

CHECKS = r"""
{%- macro data(text) -%}
{{ text | replace('<', '<\ufdd0') | replace('[', '[\ufdd0') }}
{%- endmacro -%}
{%- if tools -%}
{{ raise_exception('tools belong into the field tools of a message') }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant', 'observation'] -%}
{{ raise_exception('unknown role: ' ~ message.role) }}
{%- endif -%}
{%- if message.content is not string and message.content is not none -%}
{{ raise_exception('the content of a message is text') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and (messages | last).role not in ['user', 'observation'] -%}
{{ raise_exception('a chat must end with a question') }}
{%- endif -%}
"""

# As `_rounds` and `glm2`: consecutive questions become one, and so do answers. A namespace is needed
# because a sandboxed template can't append to lists.
ROUNDS = r"""
{%- set ns = namespace(system='', past='', round=1, query='', asked=false, answer='', answered=false) -%}
{%- for message in messages -%}
{%- set text = message.content or '' -%}
{%- if message.role == 'observation' or message.tools or message.metadata -%}
{{ raise_exception('ChatGLM2-6B knows no tools') }}
{%- elif message.role == 'system' -%}
{%- set ns.system = ns.system ~ (text ~ '\n\n' if text else '') -%}
{%- elif message.role == 'assistant' -%}
{%- set ns.answer = ns.answer ~ '\n' ~ text if ns.answered else text -%}
{%- set ns.asked = true -%}
{%- set ns.answered = true -%}
{%- elif ns.answered -%}
{%- set ns.past = ns.past ~ '[Round ' ~ ns.round ~ ']\n\n问：' ~ ns.query ~ '\n\n答：' ~ ns.answer ~ '\n\n' -%}
{%- set ns.round = ns.round + 1 -%}
{%- set ns.query = text -%}
{%- set ns.answered = false -%}
{%- else -%}
{%- set ns.query = ns.query ~ '\n' ~ text if ns.asked else text -%}
{%- set ns.asked = true -%}
{%- endif -%}
{%- endfor -%}
{%- set last = '[Round ' ~ ns.round ~ ']\n\n问：' ~ ns.query -%}
{%- set answer = '\n\n答：' ~ ns.answer if ns.answered else '\n\n答：' if add_generation_prompt else '' -%}
{{ '[gMASK]<sop>' ~ data(ns.system ~ ns.past ~ last ~ answer) }}
"""

# As `_under_role`: the role's line and the text are encoded separately. SentencePiece starts each
# text with a blank; the tokenizer itself adds only the first.
TURNS_3 = r"""
{{ '[gMASK]<sop>' }}
{%- for message in messages -%}
{%- set text = message.content or '' -%}
{%- set text = text ~ ('\n' ~ message.tools | tojson(indent=4) if message.tools else '') -%}
{{ '<|' ~ message.role ~ '|>' ~ data(message.metadata or '') ~ '\n' ~ (' ' ~ data(text) if text else '') }}
{%- endfor -%}
{{ '<|assistant|>' if add_generation_prompt else '' }}
"""

# The same; at a mark after a line's end, the exported tokenizer starts a new encoding.
TURNS_4 = r"""
{{ '[gMASK]<sop>' }}
{%- for message in messages -%}
{%- set text = message.content or '' -%}
{%- if message.tools -%}
{%- set ns = namespace(listed=TOOLS) -%}
{%- for tool in message.tools -%}
{%- set function = tool.function or tool -%}
{%- set ns.listed = ns.listed ~ BEFORE_NAME ~ function.name ~ BEFORE_SCHEMA ~ function | tojson(indent=4) ~ AFTER -%}
{%- endfor -%}
{{ '<|system|>\n\ufdd0' ~ data(ns.listed) }}
{%- endif -%}
{%- if text or not message.tools -%}
{{ '<|' ~ message.role ~ '|>' ~ data(message.metadata or '') ~ '\n' ~ ('\ufdd0' ~ data(text) if text else '') }}
{%- endif -%}
{%- endfor -%}
{{ '<|assistant|>' if add_generation_prompt else '' }}
"""


def template_of(generation: int) -> str:
    """The chat template of ChatGLM2, ChatGLM3 or GLM-4 (2, 3, 4), in transformers' Jinja."""
    if generation == 4:
        before_name, rest = TOOL_4.split("{name}")
        before_schema, after = rest.split("{schema}")
        parts = {
            "TOOLS": TOOLS_4, "BEFORE_NAME": before_name, "BEFORE_SCHEMA": before_schema,
            "AFTER": after,
        }  # fmt: skip
        sets = (f"{{%- set {name} = {_literal(text)} -%}}" for name, text in parts.items())
        body = "".join(sets) + TURNS_4.strip()
    else:
        body = {2: ROUNDS, 3: TURNS_3}[generation].strip()
    return CHECKS.strip() + body


def _literal(text: str) -> str:
    """A Jinja string; the texts have line ends but no quotes."""
    return "'" + text.replace("\n", r"\n") + "'"


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
    Raises `UserError` if a word of the vocabulary or a prompt gets other ids than from `ours`.
    """
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
    words = {
        piece
        for piece, index in vocab.items()
        if not (sp.is_control(index) or sp.is_unknown(index) or sp.is_byte(index))
    }
    merges = list(splits(words, vocab))
    model = BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=False)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = Sequence([*_unmarked(), Prepend(BLANK), Replace(" ", BLANK)])
    tokenizer.decoder = DecoderSequence(
        [ReplaceDecoder(BLANK, " "), ByteFallback(), Fuse(), Strip(" ", 1, 0)]
    )
    specials = MARKS if ours.generation == 2 else MARKS + ROLES
    names = ["<unk>", "<s>", "</s>", *(NAMES.get(name, name) for name in specials)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    used = ("[gMASK]", "<sop>", "</s>")
    tokenizer.post_processor = TemplateProcessing(
        single="[gMASK] <sop> $A",
        pair="[gMASK] <sop> $A $B </s>",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in used],
    )
    return tokenizer


def _bytes(ours: Tokenizer) -> Tokenizer:
    """GLM-4's, which also removes the marks of its template."""
    tokenizer = Tokenizer.from_str(ours.to_str())
    tokenizer.normalizer = Sequence(_unmarked())
    line = Split(Regex(rf"(?<=\n){MARK}"), behavior="removed")
    tokenizer.pre_tokenizer = SplitSequence([line, tokenizer.pre_tokenizer])
    return tokenizer


def _unmarked() -> list[Replace]:
    return [Replace(f"{letter}{MARK}", letter) for letter in "<["]


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
