"""Tokenizer directories for the tests: the published vocabularies, and small ones of their kinds.

ChatGLM-6B's own file is there only beside the repository; a small one of its kind always is.
"""

import json
import shutil
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path

import sentencepiece
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from rag.chatglm.tokenization import PATTERN, SPECIALS

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests/golden/tokenizer"
SHARED = ROOT.parent / "shared/golden/tokenizer"
TEXTS = tuple(
    ROOT / page
    for name in ("README", "docs/quickstart", "docs/settings", "docs/figures")
    for page in (f"{name}.md", f"{name}.zh-CN.md")
)
# As the published repositories have it.
REMOTE = {
    "remove_space": False,
    "do_lower_case": False,
    "tokenizer_class": "ChatGLMTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
}
REMOTE_1 = REMOTE | {
    "name_or_path": "THUDM/chatglm-6b",
    "bos_token": "<sop>",
    "eos_token": "<eop>",
    "end_token": "</s>",
    "gmask_token": "[gMASK]",
    "mask_token": "[MASK]",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "num_image_tokens": 0,
}


def configure(folder: Path, config: Mapping[str, object]) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def published(folder: Path, generation: int) -> Path:
    """`folder` as ChatGLM2's or ChatGLM3's published directory, tokenizer only."""
    shutil.copyfile(GOLDEN / "tokenizer.model", folder / "tokenizer.model")
    return configure(folder, REMOTE | {"name_or_path": f"THUDM/chatglm{generation}-6b"})


def published_1(folder: Path) -> Path:
    """`folder` as ChatGLM-6B's, from beside the repository."""
    shutil.copyfile(SHARED / "v1/ice_text.model", folder / "ice_text.model")
    return configure(folder, REMOTE_1)


def small_1(folder: Path, *, texts: Iterable[Path] = TEXTS) -> Path:
    """`folder` with a small vocabulary of ChatGLM-6B's kind: its control, blank and byte words."""
    blanks = [f"<|blank_{count}|>" for count in range(2, 81)]
    sentencepiece.SentencePieceTrainer.train(
        input=",".join(map(str, texts)),
        model_prefix=str(folder / "ice_text"),
        vocab_size=1200,
        hard_vocab_limit=False,
        character_coverage=0.9999,
        normalization_rule_name="nmt_nfkc",
        split_digits=True,
        byte_fallback=True,
        pad_id=3,
        control_symbols=["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"],
        user_defined_symbols=["<n>", "<|tab|>", *blanks],
        minloglevel=2,
    )
    (folder / "ice_text.vocab").unlink()
    return configure(folder, REMOTE_1)


def ranks_4() -> dict[bytes, int]:
    """A small vocabulary of GLM-4's kind: 256 bytes and what their joining gave, by rank."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(PATTERN), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([path.read_text("utf-8") for path in TEXTS], trainer)
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(256, 512))
    byte = {chr(b if b in shown else next(hidden)): b for b in range(256)}
    vocab = tokenizer.get_vocab()
    return {bytes(byte[letter] for letter in word): vocab[word] for word in vocab}


def small_4(folder: Path) -> Path:
    """`folder` as GLM-4-9B-chat's own layout, with a small vocabulary."""
    ranks = ranks_4()
    lines = [f"{b64encode(word).decode()} {rank}\n" for word, rank in ranks.items()]
    (folder / "tokenizer.model").write_text("".join(lines), "ascii")
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return configure(
        folder,
        {
            "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLM4Tokenizer", None]},
            "added_tokens_decoder": {
                str(len(ranks) + i): {"content": name, "special": True, **special}
                for i, name in enumerate(SPECIALS)
            },
            "additional_special_tokens": [*SPECIALS],
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "padding_side": "left",
            "remove_space": False,
            "tokenizer_class": "ChatGLM4Tokenizer",
        },
    )


def small_3(folder: Path, words: int = 490) -> Path:
    """`folder` with a small vocabulary of ChatGLM2's and 3's kind, for models with few words."""
    sentencepiece.SentencePieceTrainer.train(
        input=str(ROOT / "LICENSE"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=words,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        character_coverage=1.0,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    return folder
