"""Training sets from a knowledge base: split by document, the same bytes for the same seed."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune.data.formats import examples
from finetune.evaluate.questions import read
from finetune.options import SyntheticOptions
from finetune.synth.build import SyntheticReport, exam, heldout_digests, write_lines
from finetune.synth.build import build as build_rows
from finetune.synth.pair import normalize
from finetune.synth.raft import RaftBuilder
from ingest.errors import UserError
from ingest.store import open_store
from rag.types import Message, Sampling
from tests.finetune.documents import DOCUMENTS, ingest, open_base

ROOT = Path(__file__).parents[3]
AGAIN = """
import sys
from pathlib import Path
from tests.finetune.synth.test_build import build
build(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def characters(messages: Sequence[Message]) -> int:
    return sum(len(message.text) for message in messages)


def build(base: Path, out: Path, options: SyntheticOptions | None = None, **more: object) -> SyntheticReport:
    chosen = options or SyntheticOptions(heldout=0.4)
    with open_base(base) as pipeline:
        builder = RaftBuilder(pipeline, characters, 4000, 3, 0.3, seed=chosen.seed)
        return build_rows(builder, out, chosen, **more)  # type: ignore[arg-type]  (by name)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingest(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def built(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SyntheticReport]:
    out = tmp_path_factory.mktemp("sets") / "set"
    return out, build(base, out)


def test_every_answer_is_at_the_place_in_its_row(base: Path, built: tuple[Path, SyntheticReport]) -> None:
    out, _ = built
    with open_store(base) as store:
        for row in lines(out / "train.jsonl") + lines(out / "heldout.jsonl"):
            assert row["answer"] in store.text(row["document"], row["start"], row["end"])
            assert store.document(row["source"])
            assert row["question"] in row["messages"][0]["content"]
            assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
            cites = f"[{row['gold']}]" in row["messages"][1]["content"]
            assert cites == (row["gold"] is not None)


def test_a_document_is_on_one_side_alone(built: tuple[Path, SyntheticReport]) -> None:
    out, report = built
    train, held = lines(out / "train.jsonl"), lines(out / "heldout.jsonl")
    sides = [{row["source"] for row in side} for side in (train, held)]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert len({row["question"] for row in train + held}) == len(train + held)
    assert len({row["id"] for row in train + held}) == len(train + held)
    assert (report.total("train"), report.total("heldout")) == (len(train), len(held))
    refusals = sum(row["gold"] is None for row in train + held)
    assert sum(report.refusals.values()) == refusals > 0


def test_pairs_prefer_the_targets_of_the_training_rows(base: Path, tmp_path: Path) -> None:
    """Refusals over invented answers; marks over none, and over those of other passages. Refusals keep their
    share."""
    pairs = tmp_path / "pairs.jsonl"
    build(base, tmp_path / "set", SyntheticOptions(heldout=0.4, preferences=pairs))
    rows = {row["messages"][0]["content"]: row for row in lines(tmp_path / "set" / "train.jsonl")}
    kinds: set[str] = set()
    pairs_of: Counter[str] = Counter()
    for example in examples([pairs]):
        row, marks = rows[example.question], set(re.findall(r"\[(\d)\]", example.rejected))
        assert example.answer == row["messages"][1]["content"]
        assert re.sub(r" ?\[\d\]", "", example.rejected) == row["reply"]
        assert marks != {str(row["gold"])}
        assert example.whole
        kinds.add("invented" if row["gold"] is None else "neighbour" if marks else "uncited")
        pairs_of[example.question] += 1
    assert {*pairs_of.values()} == {2}
    assert kinds == {"invented", "neighbour", "uncited"}


def test_an_exam_has_one_right_answer_to_each_question(base: Path, tmp_path: Path) -> None:
    with open_store(base) as store:
        rows = exam(store, limit=None, seed=0)
        assert exam(store, limit=None, seed=0) == rows
        assert exam(store, limit=1, seed=0) == rows[:1]
        texts = {document.source: store.text(document.id) for document in store.documents()}
    assert {row["output"] in "ABCD" for row in rows} == {True, False}
    for row in rows:
        said, place = row["instruction"], texts[row["source"]][row["start"] : row["end"]]
        choices = re.findall(r"(?m)^([ABCD])\. (.+)$", said)
        if choices:
            assert len({text for _, text in choices}) == 4
            assert [letter for letter, text in choices if text in place] == [row["output"]]
        else:
            statement = said.partition("：")[2]
            if row["exam"] == "table":  # the last cell may be another row's
                statement = statement.rpartition("：")[2].rstrip("。")
            assert row["output"] == ("对" if normalize(statement) in normalize(place) else "错"), said
    write_lines(tmp_path / "exam.jsonl", rows)
    assert all(question.exam for question in read(tmp_path / "exam.jsonl", None).questions)


def test_the_rows_are_training_data_and_questions_to_evaluate(
    base: Path, built: tuple[Path, SyntheticReport]
) -> None:
    out, _ = built
    rows = lines(out / "train.jsonl")
    for row, example in zip(rows, examples([out / "train.jsonl"]), strict=True):
        assert example.question == row["messages"][0]["content"]
        assert example.answer == row["messages"][1]["content"]
    with open_store(base) as store:
        held = read(out / "heldout.jsonl", store)
    assert len(held.questions) == len(lines(out / "heldout.jsonl"))
    assert held.lost == ()


def test_the_same_seed_gives_the_same_bytes(
    base: Path, built: tuple[Path, SyntheticReport], tmp_path: Path
) -> None:
    out, _ = built
    for hashing in ("0", "1"):
        command = [sys.executable, "-c", AGAIN, str(base), str(tmp_path / hashing)]
        environment = {"PYTHONHASHSEED": hashing, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, check=True, env=environment, cwd=ROOT, timeout=120)
        for name in ("train", "heldout"):
            again = (tmp_path / hashing / f"{name}.jsonl").read_bytes()
            assert again == (out / f"{name}.jsonl").read_bytes()
    build(base, tmp_path / "other", SyntheticOptions(heldout=0.4, seed=7))
    assert (tmp_path / "other" / "train.jsonl").read_bytes() != (out / "train.jsonl").read_bytes()


def test_the_order_does_not_depend_on_where_the_documents_are(tmp_path: Path) -> None:
    for name in ("here", "there"):
        build(ingest(tmp_path / name), tmp_path / f"{name}-set", SyntheticOptions())
    here, there = (lines(tmp_path / f"{name}-set" / "train.jsonl") for name in ("here", "there"))
    assert [row["id"] for row in here] == [row["id"] for row in there]


def test_a_limit_takes_the_first_rows(base: Path, tmp_path: Path) -> None:
    report = build(base, tmp_path / "few", SyntheticOptions(limit=6))
    assert report.total("train") + report.total("heldout") == 6
    build(base, tmp_path / "all", SyntheticOptions())
    few, all_ = (
        {row["id"] for side in ("train", "heldout") for row in lines(tmp_path / name / f"{side}.jsonl")}
        for name in ("few", "all")
    )
    assert few < all_


def test_a_single_document_is_all_for_training(tmp_path: Path) -> None:
    base = ingest(tmp_path, {"劳动合同法.txt": DOCUMENTS["劳动合同法.txt"]})
    report = build(base, tmp_path / "set", SyntheticOptions(kinds="article"))
    assert report.total("heldout") == 0 < report.total("train")
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["train.jsonl"]


def test_ambiguous_questions_are_left_out_and_duplicates_occur_once(tmp_path: Path) -> None:
    documents = {
        "a.txt": "居民身份证式样由国务院公安部门制定。\n海南岛的五指山海拔约一千八百六十七米左右。\n",
        "b.txt": "居民身份证式样由国务院公安部门制定。\n海南岛的五指山海拔约一千八百七十九米左右。\n太湖的平均深度约为二米。\n",
    }
    report = build(ingest(tmp_path, documents), tmp_path / "set", SyntheticOptions(heldout=0))
    questions = [row["question"] for row in lines(tmp_path / "set" / "train.jsonl")]
    assert (report.rejected["duplicate"], report.rejected["ambiguous"]) == (1, 2)
    assert "太湖的平均深度约为多少米？" in questions
    assert not any("五指山" in question for question in questions)


def test_an_existing_set_is_not_overwritten(base: Path, tmp_path: Path) -> None:
    (tmp_path / "heldout.jsonl").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        build(base, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["heldout.jsonl"]
    with pytest.raises(UserError, match="exists already"):
        build(base, tmp_path / "heldout.jsonl")
    assert (tmp_path / "heldout.jsonl").read_text() == "mine"


def test_an_interrupted_run_leaves_nothing_behind(base: Path, tmp_path: Path) -> None:
    @contextmanager
    def watch(total: int) -> Iterator[object]:
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            if done == total // 2:
                raise KeyboardInterrupt

        yield tick

    with pytest.raises(KeyboardInterrupt):
        build(base, tmp_path / "set", progress=watch)
    assert list(tmp_path.iterdir()) == []


def test_all_files_appear_at_once(base: Path, tmp_path: Path) -> None:
    """What a kill leaves is a folder of another name; in its place the set is whole, or not there."""
    out, seen = tmp_path / "set", list[int]()

    @contextmanager
    def watch(total: int) -> Iterator[object]:
        yield lambda: seen.append(len(list(out.iterdir())))

    out.mkdir()  # an empty one is none
    build(base, out, SyntheticOptions(heldout=0.4), progress=watch)
    assert set(seen) == {0}
    assert {path.name for path in out.iterdir()} == {"train.jsonl", "heldout.jsonl"}
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_documents_without_questions_are_an_error(tmp_path: Path) -> None:
    base = ingest(tmp_path, {"a.txt": "床前明月光，疑是地上霜。\n"})
    with pytest.raises(UserError, match="--write-questions"):
        build(base, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_share_of_the_documents_is_held_out_whatever_their_rows() -> None:
    digests = [f"d{number}" for number in range(40)] * 3
    held = heldout_digests(digests, 0.25, 0)
    assert len(held) == 10
    assert held == heldout_digests(digests[::-1], 0.25, 0) != heldout_digests(digests, 0.25, 1)
    assert len(heldout_digests(["a", "b"], 0.01, 0)) == len(heldout_digests(["a", "b"], 0.9, 0)) == 1
    assert heldout_digests(["a", "a"], 0.5, 0) == heldout_digests(digests, 0, 0) == frozenset()


class Examiner:
    """Asks where the first thing named in a passage is, if the passage says `在…`."""

    name = "examiner"
    context = 4000

    def count(self, messages: Sequence[Message]) -> int:
        return characters(messages)

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[str]:
        what, _, rest = messages[-1].text.rpartition("\n\n")[2].partition("在")
        yield f"问题：{what}在什么地方？\n答案：{rest.partition('，')[0]}" if rest else "不知道"


def test_a_model_may_write_the_questions(tmp_path: Path) -> None:
    places = {
        "a.txt": "五指山在海南岛的中部，岛上四季常青。\n",
        "b.txt": "青海湖在青藏高原的东北，湖水是咸的。\n",
        "c.txt": "床前明月光，疑是地上霜。\n",
    }
    base, options = ingest(tmp_path, places), SyntheticOptions(kinds="model", heldout=0.5)
    report = build(base, tmp_path / "set", options, generator=Examiner())
    made = lines(tmp_path / "set" / "train.jsonl") + lines(tmp_path / "set" / "heldout.jsonl")
    assert {(row["question"], row["answer"]) for row in made} == {
        ("五指山在什么地方？", "海南岛的中部"),
        ("青海湖在什么地方？", "青藏高原的东北"),
    }
    assert {row["kind"] for row in made} == {"model"}
    assert report.rejected["invalid"] == 1
