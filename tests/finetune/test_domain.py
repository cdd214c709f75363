"""The folder that a domain's adapter is made in, and how an adapter is put in use."""

import json
import tomllib
from pathlib import Path

import pytest

from finetune.domain import DOCUMENTS, DomainRun, divide, general_rows, put_in_use
from ingest.errors import UserError

USED = {"model": "/m", "adapter": '/a b"c'}
LINES = 'model = "/m"\nadapter = "/a b\\"c"\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"[generate]\n{LINES}"),
        ("[read]\n", f"[read]\n\n[generate]\n{LINES}"),
        ("[read]", f"[read]\n\n[generate]\n{LINES}"),
        ("\ufeff[ generate ] # x\nseed = 1\n", f"\ufeff[ generate ] # x\n{LINES}seed = 1\n"),
        ("[generate]\r\n# x\r\n", f"[generate]\n{LINES}# x\n".replace("\n", "\r\n")),
        ("[generate]", f"[generate]\n{LINES}".rstrip()),
    ],
)
def test_lines_are_added_to_the_settings(before: str, after: str, tmp_path: Path) -> None:
    file = tmp_path / "rag.toml"
    if before:
        file.write_bytes(before.encode())
    assert put_in_use(file, "generate", USED, without=("model", *USED))
    assert file.read_bytes().decode() == after
    assert put_in_use(file, "generate", USED, without=("model", *USED))  # it stands there already
    assert file.read_bytes().decode() == after
    assert tomllib.loads(after.removeprefix("\ufeff"))["generate"].items() >= USED.items()


@pytest.mark.parametrize(
    "text",
    [
        '[generate]\nmodel = "other"\n',
        '[generate]\nadapter = "other"\n',
        "generate = {seed = 1}\n",
        "generate.seed = 1\n",
        'x = """\n[generate]\n"""\n',
    ],
)
def test_settings_with_another_model_do_not_change(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rag.toml"
    file.write_text(text, "utf-8")
    assert not put_in_use(file, "generate", USED, without=("model", *USED))
    assert file.read_text("utf-8") == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '[read]\nreader = "new"\n'),
        ("[read]  # mine\npassages = 3\n", '[read]  # mine\nreader = "new"\npassages = 3\n'),
        ('[read]\n  reader="old" # why\n# end', '[read]\n  reader = "new" # why\n# end'),
        ("[read]\nreader = 'old'\r\n", '[read]\nreader = "new"\r\n'),
    ],
)
def test_a_value_is_replaced_and_all_else_stays(before: str, after: str, tmp_path: Path) -> None:
    file = tmp_path / "rag.toml"
    file.write_bytes(before.encode())
    assert put_in_use(file, "read", {"reader": "new"})
    assert file.read_bytes().decode() == after
    assert put_in_use(file, "read", {"reader": "new"})
    assert file.read_bytes().decode() == after


@pytest.mark.parametrize("text", ["read.reader = 'old'\n", '[read]\nreader = """old"""\n'])
def test_a_value_in_another_form_stays(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rag.toml"
    file.write_text(text, "utf-8")
    assert not put_in_use(file, "read", {"reader": "new"})
    assert file.read_text("utf-8") == text


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
        DomainRun(tmp_path).begin({})


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    work = DomainRun(tmp_path)
    work.evaluation.write_text('{"verdict": {"sh', "utf-8")
    with pytest.raises(UserError, match=r"eval.json is damaged; delete it to evaluate again"):
        _ = work.decision
    (tmp_path / "domain.json").write_text("[]", "utf-8")
    with pytest.raises(UserError, match=r"domain.json is damaged; start again in another folder"):
        work.begin({})


INPUTS = {"--limit": None, DOCUMENTS: "2 (aa)"}


def test_interrupted_rows_are_made_again(tmp_path: Path) -> None:
    work = DomainRun(tmp_path / "work")
    work.begin({"--limit": None})
    with pytest.raises(KeyboardInterrupt):
        work.make_rows(_broken_off, INPUTS)
    work.begin({"--limit": None})
    assert not work.has_rows(INPUTS)
    work.make_rows(lambda folder: folder.mkdir(), INPUTS)
    assert list(work.rows.iterdir()) == []
    assert work.has_rows(INPUTS)
    with pytest.raises(UserError, match="none can be held out"):
        _ = work.example


def test_inputs_may_change_until_training_has_a_checkpoint(tmp_path: Path) -> None:
    work = DomainRun(tmp_path / "work")
    other = INPUTS | {DOCUMENTS: "3 (bb)"}
    work.begin({"--limit": None})
    work.make_rows(lambda folder: folder.mkdir(), INPUTS)
    work.begin({"--limit": 9})
    assert not work.has_rows(other)
    (work.adapter / "checkpoint-2").mkdir(parents=True)
    assert work.has_rows(INPUTS)
    with pytest.raises(UserError, match=r"the documents changed .*; name a new folder with --out"):
        work.has_rows(other)
    with pytest.raises(UserError, match="started with --limit = None, now it is 9"):
        work.begin({"--limit": 9})


def _broken_off(folder: Path) -> None:
    folder.mkdir()
    (folder / "train.jsonl").write_text("{}\n", "utf-8")
    raise KeyboardInterrupt
