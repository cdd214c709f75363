"""52,000 alpaca rows to tokens, by the tutorial's way and by ours: python benchmarks/tokenise.py
[DATA.json] [--rows 52000] [--noise 0.02] [--runs 3].

The tutorial's way is what mymusise/ChatGLM-Tuning's cover_alpaca2jsonl.py and
tokenize_dataset_rows.py do, run again on the same vocabulary (ChatGLM2's): JSON lines, a tokenizer
of transformers that has pieces from SentencePiece and ids one by one, as upstream's
tokenization_chatglm.py, and `datasets`, where that is installed (else pyarrow alone, a little faster).
Rows are those of DATA over and over, each with a number of its own in question and answer, and with
a share (--noise) of its letters and Chinese characters replaced at random, so that texts and words
recur no more than they would. Both write to disk; both open the tokenizer; imports are not counted.
Ours is timed three times: its chat template, its tutorial template, and --compat tutorial, whose
ids are compared with the tutorial's, one by one.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

# benchmarks/finetune.py has the package's name: this folder is no place to look for that.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent]

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "alpaca"
DATA = sorted(SHARED.glob("alpaca_??.json")) or [ROOT / "tests/data/alpaca/alpaca_zh.json"]
VOCABULARY = ROOT / "tests/golden/tokenizer/tokenizer.model"
MOST = 384  # the script's --max_seq_length
# The 3,755 characters of daily use: the first level of GB 2312.
COMMON = [
    bytes([row, cell]).decode("gb2312")
    for row in range(0xB0, 0xD8)
    for cell in range(0xA1, 0xFF)
    if (row, cell) < (0xD7, 0xFA)
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="*", default=DATA)
    parser.add_argument("--rows", type=int, default=52_000)
    parser.add_argument("--noise", type=float, default=0.02)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = prepare(folder, options.data, options.rows, options.noise)
        compare(folder, source, options.rows, options.runs, options.workers)


def prepare(folder: Path, paths: list[Path], count: int, noise: float) -> Path:
    """The rows as a JSON array, and beside it the model's folder."""
    model = folder / "model"
    model.mkdir()
    (model / "tokenizer.model").write_bytes(VOCABULARY.read_bytes())
    (model / "tokenizer_config.json").write_text('{"name_or_path": "THUDM/chatglm2-6b"}')
    rows = [row for path in paths for row in json.loads(path.read_text("utf-8"))]
    dice = random.Random(0)

    def noisy(text: str) -> str:
        letters = list(text)
        for place in range(len(letters)):
            if letters[place].isalpha() and dice.random() < noise:
                latin = letters[place].isascii()
                letters[place] = dice.choice("etaoinshrdlu" if latin else COMMON)
        return "".join(letters)

    made: list[dict[str, str]] = []
    for number in range(count):
        row = rows[number % len(rows)]
        question, answer = noisy(row["instruction"]), noisy(row["output"])
        given = noisy(row.get("input") or "")
        made.append(
            {"instruction": f"{question} {number}", "input": given, "output": f"{number} {answer}"}
        )
    source = folder / "alpaca.json"
    source.write_text(json.dumps(made, ensure_ascii=False, indent=2), "utf-8")
    characters = sum(len(text) for row in made for text in row.values()) / count
    say(f"{count} rows of {characters:.0f} characters, {source.stat().st_size / 1e6:.1f} MB")
    return source


def compare(folder: Path, source: Path, count: int, runs: int, workers: int) -> None:
    from finetune.data.compat import TutorialOptions
    from finetune.data.tokenize import tokenise

    def ours(place: Path, **options: Any) -> Any:
        given: dict[str, Any] = {"template": "chat", "max_length": 2 * MOST + 1}
        return tokenise(
            [source],
            folder / "model",
            generation=2,
            cache=place,
            workers=workers,
            **(given | options),
        )

    ways: dict[str, Callable[[Path], Any]] = {
        "the tutorial's way": lambda place: tutorial(source, folder / "model", place),
        "chat": ours,
        "tutorial": lambda place: ours(place, template="tutorial"),
        "--compat tutorial": lambda place: ours(place, compat=TutorialOptions(MOST)),
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    found: dict[str, Any] = {}
    for run in range(runs):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), used()
            found[name] = way(folder / f"{run} {name}")
            spent[name].append((time.perf_counter() - wall, used() - cpu))
    say(f"ids of --compat tutorial are the tutorial's: {same(*found.values())}")
    slow = min(wall for wall, _ in spent["the tutorial's way"])
    say(f"{'':20}{'rows/s':>10}{'best of':>9}{'median':>9}{'CPU':>9}{'times as fast':>15}")
    for name, pairs in spent.items():
        walls = sorted(wall for wall, _ in pairs)
        cpu = min(cpu for _, cpu in pairs)
        say(
            f"{name:20}{count / walls[0]:10.0f}{walls[0]:7.2f} s{walls[len(walls) // 2]:7.2f} s"
            f"{cpu:7.2f} s{slow / walls[0]:15.1f}"
        )


def tutorial(source: Path, model: Path, place: Path) -> Path:
    """The two scripts, one after the other."""
    place.mkdir()
    with source.open(encoding="utf-8") as file, (place / "a.jsonl").open("w") as lines:
        for example in json.load(file):
            context = f"Instruction: {example['instruction']}\n"
            if example.get("input"):
                context += f"Input: {example['input']}\n"
            pair = {"context": context + "Answer: ", "target": example["output"]}
            lines.write(json.dumps(pair) + "\n")
    tokenizer = upstream(model)

    def rows() -> Iterator[dict[str, Any]]:
        with (place / "a.jsonl").open() as lines:
            for line in lines.readlines():
                pair = json.loads(line)
                prompt = f"[Round 1]\n\n问：{pair['context']}\n\n答："
                a = tokenizer.encode(prompt, max_length=MOST, truncation=True)
                b = tokenizer.encode(
                    pair["target"], max_length=MOST, truncation=True, add_special_tokens=False
                )
                yield {"input_ids": a + b + [tokenizer.eos_token_id], "seq_len": len(a)}

    return saved(rows, place)


def upstream(model: Path) -> Any:
    """ChatGLM2's tokenizer as transformers runs one that is written in Python."""
    import sentencepiece
    from transformers import PreTrainedTokenizer

    class Upstream(PreTrainedTokenizer):
        vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012  (transformers' way)

        def __init__(self, vocab_file: str) -> None:
            self.sp = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
            self.marks = {"[MASK]": 64789, "[gMASK]": 64790, "[sMASK]": 64791, "sop": 64792}
            super().__init__(eos_token="</s>")

        @property
        def vocab_size(self) -> int:
            return 65024

        def get_vocab(self) -> dict[str, int]:
            return {self.sp.id_to_piece(i): i for i in range(self.sp.vocab_size())}

        def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
            return self.sp.encode_as_pieces(text)

        def _convert_token_to_id(self, token: str) -> int:
            return self.marks.get(token) or self.sp.piece_to_id(token)

        def build_inputs_with_special_tokens(self, ids: list[int], pair: Any = None) -> list[int]:
            return [self.marks["[gMASK]"], self.marks["sop"], *ids]

    return Upstream(str(model / "tokenizer.model"))


def saved(rows: Callable[[], Iterator[dict[str, Any]]], place: Path) -> Path:
    """The Arrow file of the rows."""
    try:
        import datasets
    except ModuleNotFoundError:
        return _saved(rows(), place / "data.arrow")
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_generator(rows, cache_dir=str(place / "cache"))
    made.save_to_disk(str(place / "saved"))
    return next((place / "saved").glob("*.arrow"))


def _saved(rows: Iterator[dict[str, Any]], path: Path) -> Path:
    """As `datasets` writes them, 1,000 at a time."""
    import pyarrow as pa

    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("seq_len", pa.int64())])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as out:
        while some := list(islice(rows, 1000)):
            out.write_batch(pa.RecordBatch.from_pylist(some, schema))
    return path


def same(theirs: Path, *ours: Any) -> bool:
    """Whether the last of `ours` has the ids of the tutorial's file."""
    import pyarrow as pa

    with pa.memory_map(str(theirs)) as file:
        column = pa.ipc.open_stream(file).read_all()["input_ids"].to_pylist()
    rows = ours[-1]
    return len(rows) == len(column) and all(
        rows[i].ids.tolist() == ids for i, ids in enumerate(column)
    )


def used() -> float:
    """CPU seconds of this process and of those that it has ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, kinds))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
