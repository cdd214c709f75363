"""`rag finetune domain`: one command from a folder of documents to an adapter that is judged."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from finetune.domain import Work, divide, put_in_use
from ingest.errors import UserError

RAG = [sys.executable, "-c", "from rag.cli import main; main()"]
DO_NOT_SHIP = 3
# Words of a field, each in a document of its own.
TERMS = {
    "劳动合同": "劳动者与用人单位确立劳动关系、明确双方权利和义务的书面协议",
    "试用期": "用人单位对新招收的职工进行思想品德和工作能力考察的期限",
    "竞业限制": "离职人员在约定期限内不得到有竞争关系的单位任职的约定",
    "经济补偿": "解除劳动合同时由用人单位一次性支付给劳动者的金钱",
    "服务期": "用人单位提供专项培训后与劳动者约定的最短工作年限",
    "集体合同": "工会代表职工一方与用人单位就劳动报酬等事项订立的协议",
    "商业秘密": "不为公众所知悉并经权利人采取保密措施的技术信息和经营信息",
    "工作时间": "劳动者根据法律规定在用人单位从事生产或者工作的时间",
}


def test_all_steps_are_done_once_and_what_helps_nothing_is_not_put_in_use(
    tiny: Path, tmp_path: Path
) -> None:
    """A model that reads numbers of factories alone can't be helped in one step."""
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment |= {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    environment.pop("RAG_KB", None)
    docs, out = tmp_path / "docs", tmp_path / "work"
    docs.mkdir()
    for term, meaning in TERMS.items():
        (docs / f"{term}.txt").write_text(f"本法所称{term}，是指{meaning}。\n", "utf-8")
    settings = tmp_path / "chatglm-rag" / "demo" / "rag.toml"
    settings.parent.mkdir(parents=True)
    text = "[retrieve]\npassages = 2\n[generate]\nmax_new_tokens = 20\n[refuse]\nthreshold = 0.0\n"
    settings.write_text(text, "utf-8")
    command = [
        *RAG, "finetune", "domain", str(docs), "--kb", "demo", "--model", str(tiny), "--out", str(out),
        "--heldout", "0.4", "--max-steps", "1", "--lr", "1e-6", "--device", "cpu",
    ]  # fmt: skip

    def run() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    first = run()
    assert first.returncode == DO_NOT_SHIP, first.stderr
    assert f"the adapter stays in {out / 'adapter'}" in first.stderr
    assert settings.read_text("utf-8") == text
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    held = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = run()
    assert again.returncode == DO_NOT_SHIP, again.stderr
    for told in (
        "8 unchanged",
        "made before",
        "[3/5] training: done before",
        "done before, do not",
    ):
        assert told in again.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == held


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
def test_lines_are_put_into_settings(before: str, after: str, tmp_path: Path) -> None:
    file = tmp_path / "rag.toml"
    if before:
        file.write_bytes(before.encode())
    assert put_in_use(file, USED)
    assert file.read_bytes().decode() == after
    assert put_in_use(file, USED)  # it stands there already
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
def test_settings_that_say_otherwise_stay(text: str, tmp_path: Path) -> None:
    file = tmp_path / "rag.toml"
    file.write_text(text, "utf-8")
    assert not put_in_use(file, USED)
    assert file.read_text("utf-8") == text


def test_general_rows_are_learnt_or_asked_never_both(tmp_path: Path) -> None:
    rows = [{"instruction": f"问{i}", "input": "", "output": f"答{i}"} for i in range(57)]
    file = tmp_path / "general.json"
    file.write_text(json.dumps(rows), "utf-8")
    divide(file, tmp_path, seed=3)
    mixed, held = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("general", "general-heldout")
    )
    assert len(held) == 6
    assert sorted([*mixed, *held], key=rows.index) == rows
    file.write_text(json.dumps(rows[:1]), "utf-8")
    with pytest.raises(UserError, match="1 rows"):
        divide(file, tmp_path, seed=3)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x", "utf-8")
    with pytest.raises(UserError, match="not empty"):
        Work(tmp_path).begin({})


def test_rows_that_were_broken_off_are_made_anew(tmp_path: Path) -> None:
    work = Work(tmp_path / "work")
    work.begin({"--limit": None})
    with pytest.raises(KeyboardInterrupt):
        work.make_rows(_broken_off, [])
    assert not work.rows_are_of([])
    work.make_rows(lambda folder: folder.mkdir(), [])
    assert list(work.rows.iterdir()) == []
    assert work.rows_are_of([])
    with pytest.raises(UserError, match="none can be held out"):
        _ = work.example


def _broken_off(folder: Path) -> None:
    folder.mkdir()
    (folder / "train.jsonl").write_text("{}\n", "utf-8")
    raise KeyboardInterrupt
