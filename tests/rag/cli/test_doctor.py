"""`rag doctor`, and what it tells of a model before it is loaded or even here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rag.chatglm.test_memory import GLM1


def rag(*words: str, home: Path, locale: str = "C.UTF-8") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(home), "LC_ALL": locale, "COLUMNS": "80"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(home / "hf")}
    command = [sys.executable, "-c", "from rag.cli.app import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_what_is_installed_is_listed(tmp_path: Path) -> None:
    assert "onnxruntime" in rag("doctor", home=tmp_path).stdout
    told = json.loads(rag("doctor", "--json", home=tmp_path).stdout)
    assert told["packages"]["onnxruntime"]


def test_the_needs_of_a_model_are_told_from_its_configuration_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GLM1))
    told = json.loads(rag("doctor", "--model", str(tmp_path), "--json", home=tmp_path).stdout)
    assert told["generation"] == 1
    assert told["parameters"] == 6_173_286_400
    by_mode = {(mode["device"], mode["quant"]): mode for mode in told["modes"]}
    for quant, figure in (("none", 13), ("int8", 8), ("int4", 6)):  # upstream's table
        assert by_mode["cuda", quant]["total"] / 2**30 == pytest.approx(figure, rel=0.1)
    done = rag("doctor", "--model", str(tmp_path), home=tmp_path, locale="zh_CN.UTF-8")
    assert "61.7 亿参数" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()[1:]) <= 80


@pytest.mark.parametrize(
    ("name", "says"),
    [("owner/model", "HF_HUB_OFFLINE is set"), ("nowhere", "no folder nowhere"), (".", "config")],
)
def test_a_model_that_is_not_here_is_one_line(name: str, says: str, tmp_path: Path) -> None:
    done = rag("doctor", "--model", name, home=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
