"""ChatGLM's tokenizers: SentencePiece's in generations 1 to 3, tiktoken's in GLM-4.

Published directories of generations 1, 2 and 3 all name the class `ChatGLMTokenizer`; loading it
returns the class that fits the vocabulary file. Special tokens and blanks follow upstream's
tokenization_chatglm.py, and tests compare them with its results.
"""

import binascii
import json
import re
import shutil
from base64 import b64decode
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, AnyStr

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils.hub import cached_file

from ingest.errors import UserError
from rag.chatglm.configuration import Glm1Config, read_object, tokenizer_generation

MAX_BLANKS = 80
# As transformers 4, `clean_up_tokenization`: the blank before each is removed, in this order.
ENDINGS = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def with_blank_words(text: str) -> str:
    """`text` with `<n>`, `<|tab|>` and `<|blank_k|>` instead of white space, for SentencePiece."""

    def blank_words(run: re.Match[str]) -> str:
        """The longest words first; a single blank stays."""
        whole, rest = divmod(len(run[0]), MAX_BLANKS)
        last = f"<|blank_{rest}|>" if rest > 1 else " " * rest
        return f"<|blank_{MAX_BLANKS}|>" * whole + last

    return re.sub(" {2,}", blank_words, text.replace("\n", "<n>").replace("\t", "<|tab|>"))


def without_blank_words(text: str) -> str:
    """The inverse of `with_blank_words`."""
    text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
    return re.sub(r"<\|blank_([2-9]|[1-7]\d|80)\|>", lambda run: " " * int(run[1]), text)


def clean_up(text: str) -> str:
    """`text` without blanks before punctuation and English endings, as ChatGLM-6B decodes."""
    for ending in ENDINGS:
        text = text.replace(ending, ending.strip())
    return text


GLM1_FILE = "ice_text.model"
MARKS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
SMALL = (
    "config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json",
)  # fmt: skip
"""Files that are read for a tokenizer, beside the vocabulary."""
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class ChatGLMTokenizer(PreTrainedTokenizer):
    """ChatGLM2's and ChatGLM3's: `[gMASK] sop` before the text; special tokens are never parsed.
    ChatGLM3 also has role tokens, which are parsed if `encode_special_tokens` is set. Special tokens
    decode to their names in ChatGLM3 and to nothing in ChatGLM2."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012  (as transformers declares it)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"
    around_special = ""  # what is dropped before and after a special token

    def __init__(self, vocab_file: str, *, generation: int = 3, **kwargs: Any) -> None:
        specials = MARKS if generation == 2 else MARKS + ROLES
        self._load(vocab_file, generation, specials)
        kwargs.setdefault("encode_special_tokens", False)
        self.parsed = ROLES if kwargs["encode_special_tokens"] and generation == 3 else ()
        self._texts[:3] = [""] * 3  # <unk>, which is also the padding, <s>, </s>
        if generation == 2:
            self._texts[-len(MARKS) :] = [""] * len(MARKS)
        defaults = {"unk_token": "<unk>", "pad_token": "<unk>", "eos_token": "</s>"}
        super().__init__(generation=generation, **(defaults | kwargs))

    def _load(self, vocab_file: str, generation: int, specials: tuple[str, ...]) -> None:
        try:
            self.sp = sentencepiece.SentencePieceProcessor(model_file=str(vocab_file))
        except (RuntimeError, OSError):
            raise UserError(
                "{vocab_file} is missing or not a SentencePiece model; download it again",
                vocab_file=vocab_file,
            ) from None
        self.vocab_file = str(vocab_file)
        self.generation = generation
        pieces = (self.sp.id_to_piece(index) for index in range(self.sp.get_piece_size()))
        self._words = [*pieces, *specials]
        self._ids = {word: index for index, word in enumerate(self._words)}
        self._texts = self._words.copy()  # the word that SentencePiece decodes for each id

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer of the directory's generation: ChatGLM-6B's if its vocabulary file is there.
        ChatGLM2 and 3 share a vocabulary; config.json or tokenizer_config.json tells them apart."""
        path = pretrained_model_name_or_path
        if cls is ChatGLMTokenizer:
            if _find(path, GLM1_FILE, kwargs) and not _find(path, "tokenizer.model", kwargs):
                return ChatGLM1Tokenizer.from_pretrained(path, *args, **kwargs)
            if "generation" not in kwargs:
                kwargs["generation"] = _generation(path, kwargs)
        return super().from_pretrained(path, *args, **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return self._ids | self._added_tokens_encoder

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Tokens of `text`; with `split_special_tokens`, no part of it becomes a special token."""
        added = [word for word in self._added_tokens_encoder if word not in self._ids]
        parsed = [*self.parsed, *added]
        if not parsed or kwargs.get("split_special_tokens", self.split_special_tokens):
            return self._tokenize(text)
        words: list[str] = []
        pattern = f"{self.around_special}({'|'.join(map(re.escape, parsed))}){self.around_special}"
        for index, part in enumerate(re.split(pattern, text)):  # text and special tokens in turn
            words += [part] if index % 2 else self._tokenize(part)
        return words

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self.sp.encode(self.sentencepiece_text(text), out_type=str)

    def encode_data(self, text: str) -> list[int]:
        """The ids of `text`, none of which is a special token; many times as fast as `encode`."""
        return self.sp.encode(self.sentencepiece_text(text))

    def sentencepiece_text(self, text: str) -> str:
        """`text` as SentencePiece gets it."""
        return text

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self._words[index] if 0 <= index < len(self._words) else ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.sp.decode(tokens) if tokens else ""

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        text = self.convert_tokens_to_string([self._text(i) for i in ids if i not in skipped])
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return clean_up(text) if clean_up_tokenization_spaces else text

    def _text(self, index: int) -> str:
        """The text of an id; the ids of the padded part of the embedding have none."""
        if 0 <= index < len(self._texts):
            return self._texts[index]
        added = self._added_tokens_decoder.get(index)
        return added.content if added else ""

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        ids = [self._ids["[gMASK]"], self._ids["sop"], *token_ids_0]
        return ids if token_ids_1 is None else [*ids, *token_ids_1, self._ids[str(self.eos_token)]]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = Path(save_directory, prefix + self.vocab_files_names["vocab_file"])
        if Path(self.vocab_file).resolve() != target.resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Write the vocabulary and a configuration with upstream's name of the class."""
        files = super().save_pretrained(save_directory, *args, **kwargs)
        path = Path(save_directory, "tokenizer_config.json")
        config = json.loads(path.read_text("utf-8"))
        config |= {"tokenizer_class": "ChatGLMTokenizer", "generation": self.generation}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
        return files


class ChatGLM1Tokenizer(ChatGLMTokenizer):
    """ChatGLM-6B's: `[gMASK] <sop>` after the text; runs of blanks and line ends are tokens.

    A few special tokens are parsed in text, together with the blanks around them (as upstream does,
    and blank infilling needs); pass `split_special_tokens=True` for text that is not trusted."""

    vocab_files_names = {"vocab_file": GLM1_FILE}  # noqa: RUF012
    around_special = r"\s*"

    def __init__(self, vocab_file: str, *, num_image_tokens: int = 0, **kwargs: Any) -> None:
        kwargs.pop("generation", None)
        self._load(vocab_file, 1, ())
        if num_image_tokens or "[gMASK]" not in self._ids:
            raise UserError(
                "{vocab_file} belongs to the ChatGLM-6B of March 2023, whose ids begin with "
                "{image_tokens} image tokens; get the later release (130528 tokens)",
                vocab_file=vocab_file,
                image_tokens=num_image_tokens or 20000,
            )
        self.parsed = ("[MASK]", "<sop>", "<eop>", "<pad>", "<unk>")
        options = {
            "remove_space": False, "do_lower_case": False, "clean_up_tokenization_spaces": True,
            "bos_token": "<sop>", "eos_token": "<eop>", "mask_token": "[MASK]",
            "pad_token": "<pad>", "unk_token": "<unk>",
        } | kwargs  # fmt: skip
        self.remove_space, self.do_lower_case = options["remove_space"], options["do_lower_case"]
        PreTrainedTokenizer.__init__(self, num_image_tokens=0, **options)

    def sentencepiece_text(self, text: str) -> str:
        text = " ".join(text.split()) if self.remove_space else text
        return with_blank_words(text.lower() if self.do_lower_case else text)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return without_blank_words(super().convert_tokens_to_string(tokens))

    def _text(self, index: int) -> str:
        return "" if index == self.pad_token_id else super()._text(index)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        ids = [*token_ids_0, self._ids["[gMASK]"], self._ids[str(self.bos_token)]]
        return ids if token_ids_1 is None else [*ids, *token_ids_1, self._ids[str(self.eos_token)]]


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
    """Reads GLM-4-9B's tiktoken file as a fast tokenizer, and saves it as tokenizer.json."""

    vocab_files_names = {"vocab_file": "tokenizer.model", "tokenizer_file": "tokenizer.json"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"
    generation = 4

    def __init__(
        self, vocab_file: str | None = None, tokenizer_file: str | None = None, **kwargs: Any
    ) -> None:
        kwargs = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"} | kwargs
        if tokenizer_file is not None:
            super().__init__(tokenizer_file=tokenizer_file, **kwargs)
            return
        if vocab_file is None:
            raise UserError("tokenizer.model is missing; download it from the model's repository")
        ranks = read_ranks(Path(vocab_file))
        added: dict[int, AddedToken] = kwargs.pop("added_tokens_decoder", None) or {}
        specials = [added[index] for index in sorted(added)] or [*SPECIALS]
        if added and min(added) != len(ranks):
            raise UserError(
                "tokenizer_config.json numbers its special tokens from {first}, but {vocab_file} has "
                "{count} tokens; download both from the same model",
                first=min(added), vocab_file=vocab_file, count=len(ranks),
            )  # fmt: skip
        super().__init__(tokenizer_object=convert(ranks, specials), **kwargs)

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """The arguments of `__init__`; transformers would guess the kind of the vocabulary file."""
        return kwargs


def read_ranks(path: Path) -> dict[bytes, int]:
    """Each byte string of the vocabulary with its rank, which is its id. Raises `UserError` with the
    first line that is not valid, or if the ranks have gaps."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        word, _, rank = line.partition(b" ")
        if not line:
            continue
        try:
            ranks[b64decode(word, validate=True)] = int(rank)
        except (binascii.Error, ValueError):
            raise UserError(
                "{path}: line {number} is not a base64 word and its rank; download the file again",
                path=path,
                number=number,
            ) from None
    gaps = sorted(ranks.values()) != list(range(len(ranks)))
    if gaps or any(bytes([byte]) not in ranks for byte in range(256)):
        raise UserError(
            "{path}: {count} tokens, but some ranks or bytes are missing; the file is truncated, "
            "download it again",
            path=path,
            count=len(ranks),
        )
    return ranks


def splits(words: Collection[AnyStr], ranks: Mapping[AnyStr, int]) -> Iterator[tuple[AnyStr, AnyStr]]:
    """All splits of a word into two words, by the ranks of the three: the merges of a BPE."""
    for word in sorted(words, key=ranks.__getitem__):
        pairs = ((word[:cut], word[cut:]) for cut in range(1, len(word)))
        known = (pair for pair in pairs if pair[0] in words and pair[1] in words)
        yield from sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def set_prompt_start(tokenizer: Tokenizer, *end: str) -> None:
    """Let `tokenizer` put `[gMASK] <sop>` before a text, and `end` after a pair of texts."""
    names = ("[gMASK]", "<sop>", *end)
    tokenizer.post_processor = TemplateProcessing(
        single="[gMASK] <sop> $A",
        pair=" ".join(("[gMASK] <sop> $A $B", *end)),
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in names],
    )


def convert(ranks: dict[bytes, int], specials: Iterable[AddedToken | str] = SPECIALS) -> Tokenizer:
    """The same tokenizer as a byte-level BPE; `specials` get the ids after the ranks.

    tiktoken joins the adjacent pair whose *joined* rank is lowest, so every split of a word into two
    words is a merge here. Both look up whole words first (`ignore_merges`)."""
    letters = bytes_to_unicode()  # the visible letter for each byte
    names = {word: "".join(letters[byte] for byte in word) for word in ranks}
    merges = [(names[left], names[right]) for left, right in splits(ranks, ranks)]
    vocab = {name: ranks[word] for word, name in names.items()}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=True))
    split = Split(Regex(PATTERN), behavior="isolated")
    to_letters = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = Sequence([split, to_letters])
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(list(specials))
    set_prompt_start(tokenizer)
    return tokenizer


def open_tokenizer(directory: Path) -> Any:
    """The tokenizer of a model's directory, of any generation. Raises `UserError` if it has none, or if one
    of its files is damaged."""
    for path in map(directory.joinpath, SMALL):
        if path.is_file():
            read_object(path)
    if (directory / GLM1_FILE).is_file():
        return ChatGLM1Tokenizer.from_pretrained(directory)
    vocab = directory / "tokenizer.model"
    if vocab.is_file():
        with vocab.open("rb") as file:  # a word and its rank, or a protobuf of SentencePiece
            word, _, rank = file.readline(4096).strip().partition(b" ")
        kind = ChatGLM4Tokenizer if word and rank.isdigit() else ChatGLMTokenizer
        return kind.from_pretrained(directory)
    if (directory / "tokenizer.json").is_file():
        # Not AutoTokenizer, which would ask whether to run code of the directory.
        return PreTrainedTokenizerFast.from_pretrained(directory)
    raise UserError(
        "{directory} has no tokenizer: none of {glm1_file}, tokenizer.model, tokenizer.json",
        directory=directory,
        glm1_file=GLM1_FILE,
    )


def check_vocabulary(directory: Path, tokenizer: Any) -> None:
    """Raise `UserError` if the tokenizer has more words than the model of the directory."""
    config = read_object(directory / "config.json")
    words, vocabulary = len(tokenizer), config.get("padded_vocab_size") or config.get("vocab_size") or 0
    if words > vocabulary > 0:
        raise UserError(
            "{directory}: the tokenizer has {words} words, the model {vocabulary}; take both from one model",
            directory=directory, words=words, vocabulary=vocabulary,
        )  # fmt: skip


def _find(path: Any, name: str, kwargs: dict[str, Any]) -> str | None:
    """The path of the file `name` of a directory or hub repository, or None."""
    options = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **options)


def _generation(path: Any, kwargs: dict[str, Any]) -> int:
    """2 or 3, from config.json or else from tokenizer_config.json; 3 if neither shows it."""
    if config := _find(path, "config.json", kwargs):
        return Glm1Config.from_pretrained(config).generation
    if own := _find(path, "tokenizer_config.json", kwargs):
        return tokenizer_generation(read_object(Path(own))) or 3
    return 3
