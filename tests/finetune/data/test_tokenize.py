"""Sets of tokens: the encoder's rows, made once for each content, whole or not there."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.data import tokenize
from finetune.data.dataset import DATA, RECORD, RowBlock, TokenSet, write
from finetune.data.formats import examples
from finetune.data.template import CachedTokenizer, RowEncoder, TutorialOptions
from finetune.options import Columns
from finetune.types import Example, TokenRow, TokenRows
from ingest.errors import Busy, UserError
from rag.chatglm.tokenization import open_tokenizer
from tests.finetune.memory_rows import MemoryRows
from tests.finetune.tokenizers import GENERATIONS, conversations, directory, tokenizers

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared/alpaca/alpaca_zh.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return directory(tmp_path_factory.mktemp("models") / "2", 2)


@pytest.fixture(scope="module")
def all_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    return tokenizers(tmp_path_factory.mktemp("tokenizers"))


def alpaca(path: Path, count: int = 30) -> Path:
    rows = [
        {
            "instruction": f"第 {i} 题：什么是数据？",
            "input": "给小学生" * (i % 3),
            "output": f"答 {i}" * (i + 1),
        }
        for i in range(count)
    ]
    path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    return path


def made(files: list[Path], model: Path, cache: Path, **options: Any) -> TokenSet:
    given: dict[str, Any] = {"generation": 2, "template": "chat", "max_length": 64, "cache": cache}
    return tokenize.tokenize(files, model, **(given | options))


def listed(rows: TokenRows) -> list[tuple[list[int], list[int]]]:
    found = [rows[i] for i in range(len(rows))]
    return [(row.ids.tolist(), row.labels.tolist()) for row in found]


def test_rows_are_those_of_the_encoder_in_order(model: Path, tmp_path: Path) -> None:
    files = [alpaca(tmp_path / "a.json"), alpaca(tmp_path / "b.json", 5)]
    encoder = RowEncoder(open_tokenizer(model), 2, max_length=64)
    encoded = [encoder(example) for example in examples(files)]
    counts: list[int] = []
    found = made(files, model, tmp_path / "cache", progress=counts.append)
    want = MemoryRows([row for each in encoded for row in each.rows])
    assert listed(found) == listed(want)
    assert found.lengths.tolist() == want.lengths.tolist() == [len(row) for row in want]
    assert found.lengths.dtype == np.int32
    assert found.counts.shortened == sum(each.shortened for each in encoded) > 0
    assert found.counts.examples == 35
    assert counts[-1] == 35
    with pytest.raises(IndexError, match="35 of 35"):
        found[35]


def test_blocks_change_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = alpaca(tmp_path / "a.json", 90)
    whole = made([file], model, tmp_path / "1")
    monkeypatch.setattr(tokenize, "BLOCK_EXAMPLES", 7)
    parts = made([file], model, tmp_path / "2")
    assert listed(parts) == listed(whole)
    assert parts.digest == whole.digest
    assert [parts[i].ids.tolist() for i in (89, 0, 6, 7, 13, 14)] == [
        whole[i].ids.tolist() for i in (89, 0, 6, 7, 13, 14)
    ]


DIGESTS = {
    (2, "chat"): "aab081a8f069fcc00ef40bcc25c3e21b", (2, "tutorial"): "d3fe2df4fd32a43ccc8cc8aef25e0256", (3, "chat"): "f646e503c31f797939af7a0344a814b7", (3, "tutorial"): "4ff9a0db029c9797bdb75d3942f75c04",
}  # fmt: skip
"""Of the shared alpaca_zh.json, 512 tokens a row, as an earlier encoder gave them that encoded texts
in bulk, word by word."""


@pytest.mark.skipif(not SHARED.is_file(), reason="needs the alpaca data beside the repository")
@pytest.mark.parametrize(("generation", "template"), DIGESTS)
def test_ids_of_real_data_equal_the_golden_ones(generation: int, template: str, tmp_path: Path) -> None:
    found = made(
        [SHARED],
        directory(tmp_path / "model", generation),
        tmp_path / "cache",
        generation=generation,
        template=template,
        max_length=512,
    )
    assert len(found) == 595
    assert found.digest == DIGESTS[generation, template]


@pytest.mark.parametrize("generation", GENERATIONS)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(examples=st.lists(conversations(), max_size=4))
def test_cached_ids_equal_the_tokenizers(
    all_tokenizers: dict[int, Any], generation: int, examples: list[Example]
) -> None:
    tokenizer = all_tokenizers[generation]
    ours = RowBlock.of([*map(RowEncoder(CachedTokenizer(tokenizer), generation), examples * 2)])
    theirs = RowBlock.of([*map(RowEncoder(tokenizer, generation), examples * 2)])
    assert ours.ids.tolist() == theirs.ids.tolist()
    assert ours.labels.tolist() == theirs.labels.tolist()


def test_the_same_content_is_read_once(model: Path, tmp_path: Path) -> None:
    file, cache = alpaca(tmp_path / "a.json"), tmp_path / "cache"
    first = made([file], model, cache)
    written = (first.folder / DATA).stat().st_mtime_ns
    os.utime(file, (1, 1))
    moved = shutil.copyfile(file, tmp_path / "other.json")
    for again in (made([file], model, cache), made([moved], model, cache)):
        assert again.folder == first.folder
        assert again.digest == first.digest
    assert (first.folder / DATA).stat().st_mtime_ns == written


def test_edited_data_never_gives_old_rows(model: Path, tmp_path: Path) -> None:
    file, cache = alpaca(tmp_path / "a.json"), tmp_path / "cache"
    first = made([file], model, cache)
    before = file.stat()
    file.write_bytes(file.read_bytes().replace("答 7".encode(), "答 8".encode()))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    edited = made([file], model, cache)
    assert edited.digest != first.digest
    assert edited[7].ids.tolist() != first[7].ids.tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 3},
        {"template": "tutorial"},
        {"max_length": 65},
        {"columns": Columns("instruction", "output")},
        {"skip_bad": True},
        {"tutorial": TutorialOptions()},
        {"tutorial": TutorialOptions(max_seq_length=127)},
    ],
)
def test_every_option_of_rows_gives_another_set(model: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    file, cache = alpaca(tmp_path / "a.json"), tmp_path / "cache"
    if "generation" in change:
        model = directory(tmp_path / "3", 3)
    folders = {made([file], model, cache).folder, made([file], model, cache, **change).folder}
    assert len(folders) == 2


def test_another_tokenizer_gives_another_set(model: Path, tmp_path: Path) -> None:
    file, cache = alpaca(tmp_path / "a.json"), tmp_path / "cache"
    other = tmp_path / "other"
    shutil.copytree(model, other)
    assert made([file], other, cache).folder == made([file], model, cache).folder
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "right"}))
    assert made([file], other, cache).folder != made([file], model, cache).folder


def test_a_table_and_lines_are_different_sets(model: Path, tmp_path: Path) -> None:
    text = 'instruction,output\n"1","2"\n'
    lines, table = tmp_path / "a.csv", tmp_path / "a.jsonl"
    lines.write_text(text)
    table.write_text(text)
    assert len(made([lines], model, tmp_path / "cache")) == 1
    with pytest.raises(UserError, match="neither a JSON array"):
        made([table], model, tmp_path / "cache")


def test_bad_rows_are_an_error_or_counted(model: Path, tmp_path: Path) -> None:
    file, cache = tmp_path / "a.jsonl", tmp_path / "cache"
    file.write_text('{"instruction": "q", "output": "a"}\n{"instruction": "q"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: \"output\" is missing.*--skip-bad"):
        made([file], model, cache)
    assert not list(cache.glob("*/*"))
    found = made([file], model, cache, skip_bad=True)
    assert (len(found), found.counts.bad) == (1, 1)
    file.write_text('{"instruction": "q"}\n')
    with pytest.raises(UserError, match=r"all rows are bad \(1\)"):
        made([file], model, cache, skip_bad=True)
    with pytest.raises(UserError, match="missing"):
        made([tmp_path / "none.json"], model, cache)


def test_an_error_of_the_encoder_names_the_row(model: Path, tmp_path: Path) -> None:
    file = alpaca(tmp_path / "a.json", 3)
    with pytest.raises(UserError, match=r"a\.json:1: max_length is 5, but"):
        made([file], model, tmp_path / "cache", max_length=5)
    assert not list((tmp_path / "cache").glob("*/*"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_damaged_set_is_made_again(model: Path, tmp_path: Path) -> None:
    file, cache = alpaca(tmp_path / "a.json"), tmp_path / "cache"
    first = made([file], model, cache)
    rows, digest, folder = listed(first), first.digest, first.folder
    size = (folder / DATA).stat().st_size

    def truncate() -> None:
        os.truncate(folder / DATA, size // 2)

    damages = [
        lambda: flip(folder / DATA, size // 2),
        truncate,
        lambda: (folder / DATA).write_bytes(b""),
        lambda: (folder / DATA).unlink(),
        lambda: (folder / RECORD).unlink(),
        lambda: (folder / RECORD).write_text("{}"),
    ]
    for damage in damages:
        damage()
        again = made([file], model, cache)
        assert (listed(again), again.digest) == (rows, digest)
        assert again.is_whole()
    assert list(cache.glob("*/.*")) == []


def test_a_folder_without_a_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a whole set of tokens"):
        TokenSet(tmp_path)


def test_the_layout_is_that_of_datasets(model: Path, tmp_path: Path) -> None:
    """These are the files that datasets.load_from_disk reads (2.14.7 and 5.2.0 were tried)."""
    folder = made([alpaca(tmp_path / "a.json")], model, tmp_path / "cache").folder
    state = json.loads((folder / "state.json").read_text())
    assert state["_data_files"] == [{"filename": "data-00000-of-00001.arrow"}]
    assert set(state) == {
        "_data_files", "_fingerprint", "_format_columns", "_format_kwargs", "_format_type",
        "_output_all_columns", "_split",
    }  # fmt: skip
    info = json.loads((folder / "dataset_info.json").read_text())
    column = {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "Sequence"}
    assert info["features"] == {"input_ids": column, "labels": column}
    with pa.memory_map(str(folder / DATA)) as file:
        table = pa.ipc.open_stream(file).read_all()
    assert table.schema.types == [pa.list_(pa.int32())] * 2
    assert len(table) == 30


def test_the_digest_is_of_rows_and_their_order(tmp_path: Path) -> None:
    def digest(*rows: list[int]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        encoded = [TokenRow(np.array(r, np.int32), np.array(r, np.int32)) for r in rows]
        lengths = np.array([len(row) for row in rows], np.int32)
        ids = np.concatenate([row.ids for row in encoded])
        write(folder, iter([RowBlock(ids, ids, lengths)]), {})
        return TokenSet(folder).digest

    digests = [digest([1, 2], [3]), digest([1], [2, 3]), digest([3], [1, 2]), digest([1, 2, 3])]
    assert len(set(digests)) == 4
    assert digest([1, 2], [3]) == digests[0]


MAKE = """
import sys
from pathlib import Path
from finetune.data import tokenize
tokenize.BLOCK_EXAMPLES = 16
def report(count):
    sys.stdout.write(f"{count}\\n"); sys.stdout.flush()
file, model, cache = sys.argv[1:]
tokenize.tokenize([Path(file)], Path(model), generation=2, template="chat", max_length=64,
                  cache=Path(cache), progress=report)
"""


def start(file: Path, model: Path, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKE, str(file), str(model), str(cache)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_killed_run_leaves_no_set(model: Path, tmp_path: Path) -> None:
    file, cache = alpaca(tmp_path / "a.json", 400), tmp_path / "cache"
    with start(file, model, cache) as run:
        assert run.stdout
        run.stdout.readline()
        os.kill(run.pid, signal.SIGKILL)
    (home,) = cache.iterdir()
    assert [path.name for path in home.iterdir()] == [".rows.partial"]
    found = made([file], model, cache)
    assert len(found) == 400
    assert list(home.iterdir()) == [found.folder]


def test_one_of_two_processes_makes_a_set(model: Path, tmp_path: Path) -> None:
    file, cache = alpaca(tmp_path / "a.json", 200), tmp_path / "cache"
    done: list[int] = []
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(made, [file], model, cache, progress=done.append) for _ in range(2)]
        first, second = (run.result() for run in runs)
    assert listed(first) == listed(second)
    assert first.is_whole()
    assert done == sorted(done)  # the other one found it
    assert list(first.folder.parent.iterdir()) == [first.folder]


def test_a_full_disk_is_an_error(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenize, "write", full)
    with pytest.raises(UserError, match="No space left on device"):
        made([alpaca(tmp_path / "a.json")], model, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/*"))


def test_sets_that_were_used_longest_ago_leave_a_full_cache(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cache = alpaca(tmp_path / "a.json"), tmp_path / "cache"
    for length in (64, 65, 66):
        made([file], model, cache, max_length=length)
    oldest, used, last = sorted(cache.iterdir(), key=lambda each: each.stat().st_mtime)
    made([file], model, cache, max_length=65)  # used again, which makes it the newest
    monkeypatch.setattr(tokenize, "MOST_BYTES", 2 * tokenize.disk_usage(last) + 100)
    newest = made([file], model, cache, max_length=67)
    assert len(newest) == 30
    assert not oldest.exists()
    assert not last.exists()
    assert len(list(used.iterdir())) == 1
    assert len(list(cache.iterdir())) == 2


def test_a_folder_that_is_in_use_is_refused(tmp_path: Path) -> None:
    with (
        tokenize.locked(tmp_path, wait=False),
        pytest.raises(Busy, match=r"another process writes in .* name another folder with --out"),
        tokenize.locked(tmp_path, wait=False),
    ):
        pass
    with tokenize.locked(tmp_path, wait=False):
        pass
