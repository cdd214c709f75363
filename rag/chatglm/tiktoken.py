"""GLM-4's vocabulary in tiktoken's format: base64 lines of byte strings and their ranks."""

import binascii
from base64 import b64decode
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing

from ingest.errors import UserError

# As tokenization_chatglm.py of GLM-4-9B, `pat_str`.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>",
    "<|assistant|>", "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>",
    "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip


def is_tiktoken(path: Path) -> bool:
    """Whether the file is in tiktoken's format; a SentencePiece model begins with its protobuf."""
    with path.open("rb") as file:
        word, _, rank = file.readline(4096).strip().partition(b" ")
    return bool(word) and rank.isdigit()


def read_ranks(path: Path) -> dict[bytes, int]:
    """Each byte string of the vocabulary with its rank, which is its id.

    `UserError` names the first line that is none, or says that the ranks have gaps.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        word, _, rank = line.partition(b" ")
        if not line:
            continue
        try:
            ranks[b64decode(word, validate=True)] = int(rank)
        except (binascii.Error, ValueError):
            raise UserError(
                f"{path}: line {number} is not a base64 word and its rank; fetch the file again",
                zh=f"{path}：第 {number} 行不是 base64 词与序号；请重新下载该文件",
            ) from None
    whole = sorted(ranks.values()) == list(range(len(ranks)))
    if not whole or any(bytes([byte]) not in ranks for byte in range(256)):
        raise UserError(
            f"{path}: {len(ranks)} words, but some ranks or bytes are missing; the file is "
            "truncated, fetch it again",
            zh=f"{path}：共 {len(ranks)} 个词，但缺少部分序号或字节；文件不完整，请重新下载",
        )
    return ranks


def convert(ranks: dict[bytes, int], specials: Iterable[AddedToken | str] = SPECIALS) -> Tokenizer:
    """The same tokenizer as a byte-level BPE; `specials` get the ids after the ranks.

    tiktoken joins the adjacent pair whose *joined* rank is lowest, however the two parts came
    about, so every split of a word into two words is a merge here. Whole words are looked up first
    in both (`ignore_merges`).
    """
    letters = _letters()
    names = {word: "".join(letters[byte] for byte in word) for word in ranks}
    merges: list[tuple[str, str]] = []
    for word in sorted(ranks, key=ranks.__getitem__):
        splits = [(word[:cut], word[cut:]) for cut in range(1, len(word))]
        pairs = [(left, right) for left, right in splits if left in ranks and right in ranks]
        pairs.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(names[left], names[right]) for left, right in pairs]
    vocab = {name: ranks[word] for word, name in names.items()}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = Sequence(
        [
            Split(Regex(PATTERN), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(list(specials))
    prefix = ("[gMASK]", "<sop>")
    tokenizer.post_processor = TemplateProcessing(
        single="[gMASK] <sop> $A",
        pair="[gMASK] <sop> $A $B",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in prefix],
    )
    return tokenizer


def _letters() -> list[str]:
    """The visible letter that stands for each byte in a byte-level BPE (GPT-2's table)."""
    shown = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(others)) for byte in range(256)]
