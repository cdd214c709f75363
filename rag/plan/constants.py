"""What one machine was measured to do, as a JSON file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from math import inf
from pathlib import Path
from typing import Any

from ingest.errors import UserError
from ingest.store.atomic import write_whole

FORMAT = "chatglm-rag constants 1"


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured; `memory` in bytes."""

    cpu: str
    cores: int
    memory: int
    system: str


@dataclass(frozen=True, slots=True)
class Kind:
    """Documents of one format, `+ocr` where pages had to be read by OCR.

    `size` in bytes of the files; `seconds` of a core to parse and cut them.
    """

    files: int
    size: int
    chunks: int
    seconds: float

    def __add__(self, other: "Kind") -> "Kind":
        return Kind(
            self.files + other.files,
            self.size + other.size,
            self.chunks + other.chunks,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True, slots=True)
class Costs:
    """Of the local store and the bundled encoder. Seconds are of a core at work, bytes of a chunk, where
    it is not said otherwise."""

    tokens: float
    """Of a chunk, for the encoder."""
    flops: float
    """Floating-point operations that a chunk's vector takes."""
    embed: float
    """Seconds a chunk, while one core works."""
    embed_all: float
    """The same while all cores do, which share caches and memory."""
    write: float
    """Seconds a chunk, by the one writer."""
    truth: float
    """Bytes of `kb.sqlite`."""
    codes: float
    """Bytes of a chunk's code, on disk and in each process."""
    words: float
    """Bytes of the word index."""
    characters: float
    """UTF-8 bytes of a chunk's text."""
    postings: float
    """Distinct terms of a chunk in both fields of the word index."""
    process: float
    """Resident bytes of a process that answers from a small knowledge base."""
    question: float
    """Seconds until a question has its vector."""
    scan: float
    """Seconds a chunk that its code is looked at."""
    vectors: float
    """Seconds of the search by vectors apart from that: candidates are read and scored."""
    posting: float
    """Seconds a posting that is read."""
    lookup: float
    """Seconds of both searches by words apart from that."""
    read_share: float
    """Postings that a question reads, over the chunks there are, while none is left out."""
    rank: float
    """Seconds of fusing the searches and fetching passages."""
    answer: float
    """Seconds of picking the sentences of an answer."""
    parallel: float
    """How many cores' work one process gets done, as told by its rate of answers."""
    flops_rate: float | None = None
    """Operations a second of a product with int4 weights, many rows, all cores; None: not measured."""
    bytes_rate: float | None = None
    """Bytes of int4 weights read a second by a product with one row, all cores."""


@dataclass(frozen=True, slots=True)
class Point:
    """A knowledge base of made chunks (`rag.plan.made`), really built and searched."""

    chunks: int
    build: float
    """Seconds."""
    truth: int
    """Bytes, as `codes` and `words`."""
    codes: int
    words: int
    resident: int
    """Peak bytes of a process that answered from it."""
    p50: float
    """Seconds by the clock of all searches of a question: vectors, words, bigrams, cosines, fusing."""
    p95: float
    dense: float
    """Seconds of a core, the search by vectors, as `lexical` of both by words: medians."""
    lexical: float
    read: float
    """Postings read for a question, both fields."""
    rate: float
    """Searches a second in one process, all cores at work."""


@dataclass(frozen=True, slots=True)
class Constants:
    """Measured at `date` (ISO) with these versions; `points` by growing size."""

    machine: Machine
    date: str
    versions: Mapping[str, str]
    kinds: Mapping[str, Kind]
    costs: Costs
    points: tuple[Point, ...]

    def kind(self, name: str | None = None) -> Kind:
        """The documents measured of one kind, or all; `UserError` where there were none of it."""
        if name is None:
            return sum(self.kinds.values(), Kind(0, 0, 0, 0.0))
        if name not in self.kinds:
            known = ", ".join(self.kinds)
            raise UserError(
                f"no document of the kind {name} was measured; measured: {known}; "
                "or measure your own: rag plan --measure FOLDER",
                zh=f"没有测量过 {name} 类文档；已测量：{known}；或测量自己的文档：rag plan --measure 文件夹",
            )
        return self.kinds[name]

    @property
    def cores_speedup(self) -> float:
        """What each of several cores does at embedding, as a share of what one does alone."""
        return min(1.0, self.costs.embed / self.costs.embed_all)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": FORMAT} | asdict(self), indent=1, ensure_ascii=False)
        write_whole(path, text.encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> "Constants":
        """What `write` wrote; `UserError` for a file that is damaged, or another's."""
        try:
            return cls.from_json(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, KeyError) as problem:
            why = str(problem) or type(problem).__name__
            raise UserError(
                f"{path} holds no constants of this program ({why}); measure them anew: "
                "rag plan --measure",
                zh=f"{path} 不是本程序的常数文件（{why}）；请重新测量：rag plan --measure",
            ) from problem

    @classmethod
    def from_json(cls, value: Any) -> "Constants":
        """Raises KeyError, TypeError or ValueError where a part is missing, unknown or no number."""
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        kinds = {name: _made(Kind, row) for name, row in value["kinds"].items()}
        points = tuple(_made(Point, row, zeros=True) for row in value["points"])
        if not kinds or not points:
            raise ValueError("no documents or no sizes in it")
        return cls(
            Machine(**value["machine"]),
            str(value["date"]),
            dict(value["versions"]),
            kinds,
            _made(Costs, value["costs"]),
            points,
        )


def shipped() -> Constants:
    """The constants that come with the program."""
    return Constants.from_json(
        json.loads(files("rag.plan").joinpath("constants.json").read_bytes())
    )


def _made(kind: type, row: Mapping[str, Any], *, zeros: bool = False) -> Any:
    """A dataclass of numbers above 0 (or not below it); None where that is the default."""
    made = kind(**row)
    for field in fields(kind):
        number = getattr(made, field.name)
        if number is None and field.default is None:
            continue
        if not isinstance(number, (int, float)) or not (0 < number < inf or (zeros and not number)):
            raise ValueError(f"{field.name} is {number}")
    return made
