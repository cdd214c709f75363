"""GLM-4-9B's own tokenizer, a file in tiktoken's format: base64 byte strings and their ranks."""

import binascii
from base64 import b64decode
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

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


class ChatGLM4Tokenizer(PreTrainedTokenizerFast):
    """GLM-4-9B's own layout: a tiktoken file, read as a fast tokenizer; saved as tokenizer.json."""

    vocab_files_names = {  # noqa: RUF012
        "vocab_file": "tokenizer.model",
        "tokenizer_file": "tokenizer.json",
    }
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"
    generation = 4

    def __init__(
        self, vocab_file: str | None = None, tokenizer_file: str | None = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault("eos_token", "<|endoftext|>")
        kwargs.setdefault("pad_token", "<|endoftext|>")
        if tokenizer_file is not None:
            super().__init__(tokenizer_file=tokenizer_file, **kwargs)
            return
        if vocab_file is None:
            raise UserError("tokenizer.model is missing; fetch it from where the model comes from")
        ranks = read_ranks(Path(vocab_file))
        added: dict[int, AddedToken] = kwargs.pop("added_tokens_decoder", None) or {}
        specials = [added[index] for index in sorted(added)] or [*SPECIALS]
        if added and min(added) != len(ranks):
            raise UserError(
                "tokenizer_config.json numbers its special words from {added}, but {vocab_file} has "
                "{ranks_count} words; fetch both from the same model",
                added=min(added),
                vocab_file=vocab_file,
                ranks_count=len(ranks),
            )
        super().__init__(tokenizer_object=convert(ranks, specials), **kwargs)

    @classmethod
    def convert_to_native_format(
        cls, trust_remote_code: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """What `__init__` takes; transformers would guess the kind of the vocabulary file."""
        return kwargs


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
                "{path}: line {number} is not a base64 word and its rank; fetch the file again",
                path=path,
                number=number,
            ) from None
    whole = sorted(ranks.values()) == list(range(len(ranks)))
    if not whole or any(bytes([byte]) not in ranks for byte in range(256)):
        raise UserError(
            "{path}: {ranks_count} words, but some ranks or bytes are missing; the file is "
            "truncated, fetch it again",
            path=path,
            ranks_count=len(ranks),
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
