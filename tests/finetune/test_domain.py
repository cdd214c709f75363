"""The folder that a domain's adapter is made in, and the rows on other subjects."""

import json
from pathlib import Path

import pytest

from finetune.domain import DOCUMENTS, DomainRun, divide, general_rows
from ingest.errors import UserError


def test_general_rows_are_trained_on_or_evaluated_but_not_both(tmp_path: Path) -> None:
    rows = [{"instruction": f"问{i}", "input": "", "output": f"答{i}"} for i in range(57)]
    rows[5]["id"] = "\ud800"  # what is not learnt may be anything, and is kept
    file = tmp_path / "general.json"
    file.write_text(json.dumps(rows), "utf-8")
    assert general_rows(file) == rows
    divide(rows, tmp_path, seed=3)
    mixed, held = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("general", "general-heldout")
    )
    assert len(held) == 6
    assert sorted([*mixed, *held], key=rows.index) == rows
    file.write_text(json.dumps(rows[:2]), "utf-8")
    with pytest.raises(UserError, match=r"--general: .*general.json has 2 rows; need 3"):
        general_rows(file)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x", "utf-8")
    with pytest.raises(UserError, match="not empty"):
        DomainRun(tmp_path).check({})


def test_a_damaged_record_is_an_error_or_written_again(tmp_path: Path) -> None:
    work = DomainRun(tmp_path)
    work.evaluation.write_text('{"verdict": {"sh', "utf-8")
    assert work.decision is None
    work.inputs.write_text("[", "utf-8")
    with pytest.raises(UserError, match="not empty"):
        work.check({})


INPUTS = {"--limit": None, DOCUMENTS: "2 (aa)"}


def test_interrupted_rows_are_made_again(tmp_path: Path) -> None:
    work = DomainRun(tmp_path / "work")
    work.check({"--limit": None})
    with pytest.raises(KeyboardInterrupt):
        work.make_rows(_broken_off, INPUTS)
    work.check(INPUTS)
    assert not work.has_rows(INPUTS)
    work.make_rows(lambda folder: folder.mkdir(), INPUTS)
    assert list(work.rows.iterdir()) == []
    assert work.has_rows(INPUTS)
    with pytest.raises(UserError, match="none can be held out"):
        _ = work.example


def test_inputs_may_change_until_training_has_a_checkpoint(tmp_path: Path) -> None:
    work = DomainRun(tmp_path / "work")
    other = INPUTS | {DOCUMENTS: "3 (bb)"}
    work.check({"--limit": None})
    work.make_rows(lambda folder: folder.mkdir(), INPUTS)
    work.check({"--limit": 9})
    work.check(other)
    assert not work.has_rows(other)
    (work.adapter / "checkpoint-2").mkdir(parents=True)
    work.check({"--limit": None})
    work.check(INPUTS)
    with pytest.raises(UserError, match=r"the data in the documents changed since .*; give the old files"):
        work.check(other)
    with pytest.raises(UserError, match="started with --limit = None, now it is 9"):
        work.check({"--limit": 9})


def _broken_off(folder: Path) -> None:
    folder.mkdir()
    (folder / "train.jsonl").write_text("{}\n", "utf-8")
    raise KeyboardInterrupt
