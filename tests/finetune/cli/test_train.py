"""`rag finetune train` as a person types it; nothing is sent anywhere."""

import json
import re
from pathlib import Path

import pytest

from tests.commands import rag


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    made = [{"instruction": f"{n}号？", "output": f"甲厂的编号是{n * 7}。"} for n in range(40)]
    (tmp_path / "rows.json").write_text(json.dumps(made), "utf-8")
    return tmp_path / "rows.json"


def train(rows: Path, model: Path, out: Path, *options: str, locale: str = "C.UTF-8") -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    environment = {"LC_ALL": locale, "COLUMNS": "120", "XDG_CACHE_HOME": str(out.parent)}
    done = rag(
        "finetune", "train", rows, "--model", model, "--out", out, "--device", "cpu",
        "--max-length", "120", *options, environment=environment, offline=True,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


SHORT = ("--max-steps", "6", "--logging-steps", "2", "--eval-steps", "4", "--save-steps", "3")


def test_a_dry_run_reports_and_writes_nothing(rows: Path, tiny: Path, tmp_path: Path) -> None:
    code, out, err = train(rows, tiny, tmp_path / "out", *SHORT, "--dry-run")
    assert code == 0, err
    assert "38 training rows, 2 held out" in err
    assert re.search(r"memory: [\d.]+ GB at most \(weights [\d.]+, .*\); [\d.]+ GB free", err)
    assert "the largest that fits: --batch-size" in err or "--pack-length" in err
    assert re.search(r"s a step; .* tokens/s; 0:\d\d:\d\d for 6 steps", out)
    assert not (tmp_path / "out").exists()


def test_progress_messages(rows: Path, tiny: Path, tmp_path: Path) -> None:
    code, out, err = train(rows, tiny, tmp_path / "out", *SHORT, locale="zh_CN.UTF-8")
    assert code == 0, err
    for step in (2, 4, 6):
        assert re.search(rf"第 {step}/6 步，损失 [\d.]+.*，[\d,]+ 词元/秒，剩余 \d+:\d\d", err)
    assert re.search(r"第 4/6 步.*验证 [\d.]+", err)
    assert "内存：最多" in err
    assert "读回校验" in err
    assert out.strip() == str(tmp_path / "out")


def test_a_folder_that_is_not_empty_is_not_changed(rows: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train(rows, tiny, out, *SHORT)[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    code, _, err = train(rows, tiny, out, *SHORT, "--seed", "1")
    assert (code, err.splitlines()[-1]) == (
        1,
        f"rag: {out} holds a training at step 6; add --resume to continue, "
        "--overwrite-output-dir to lose it, or name another --out",
    )
    code, _, err = train(rows, tiny, out, *SHORT, "--seed", "1", "--resume")
    assert code == 1
    assert "--seed = 42, now it is 1" in err
    assert "loading" not in err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert train(rows, tiny, out, *SHORT, "--seed", "1", "--overwrite-output-dir", "true")[0] == 0
    assert (out / "adapter_model.safetensors").read_bytes() != before[out / "adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lora-targets", ","), "--lora-targets names no module; choose from: "),
        (("--out", "/proc/nothing"), "/proc/nothing"),
    ],
)
def test_a_mistake_is_one_line(
    options: tuple[str, ...], message: str, rows: Path, tiny: Path, tmp_path: Path
) -> None:
    code, _, err = train(rows, tiny, tmp_path / "out", *SHORT, *options)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert "loading" not in err


def test_a_training_without_a_checkpoint_starts_again_with_overwrite(
    rows: Path, tiny: Path, tmp_path: Path
) -> None:
    """It may as well be running."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert train(rows, tiny, whole, *SHORT)[0] == 0
    part.mkdir()
    for name in ("loss.csv", "mine.txt"):
        (part / name).write_text("step,epoch,loss\n0,0,9\n", "utf-8")
    code, _, err = train(rows, tiny, part, *SHORT)
    assert code == 1
    assert "holds a training at step 0; add --resume to continue, --overwrite-output-dir to lose it" in err
    code, _, err = train(rows, tiny, part, *SHORT, "--overwrite-output-dir")
    assert code == 0, err
    for name in ("loss.csv", "adapter_model.safetensors"):
        assert (part / name).read_bytes() == (whole / name).read_bytes()
    assert (part / "mine.txt").is_file()
