"""Every command in a base install: it works, or names what to install, in one line.

`make base` does the same in an environment of its own.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from rag.cli.doctor import packages
from tests.rag.chatglm.golden import COPY

ROOT = Path(__file__).parents[1]
WORKS = {
    "--version": "--version",
    "ingest": "ingest docs --kb small --quiet",
    "ask": "ask 试用期最长几个月？ --kb small",
    "chat": "chat --kb small",
    "search": "search 试用期 --kb small",
    "eval": "eval set --save report/",
    "doctor": "doctor",
    "plan": "plan --documents 10",
    "kb list": "kb list",
    "kb info": "kb info small",
    "kb verify": "kb verify small",
    "kb rebuild": "kb rebuild small",
    "kb snapshot": "kb snapshot small.kb small",
    "kb restore": "kb restore small.kb second",
    "kb remove": "kb remove docs/law.md --kb second",
    "kb calibrate": "kb calibrate set second",
    "keys create": "keys create x --scope read",
    "keys list": "keys list",
    "keys revoke": "keys revoke x",
    "finetune grounded": "finetune grounded small rows/",
    "finetune exam": "finetune exam small -o exam.jsonl",
}
"""Commands that need no extra."""
NEEDS = {
    "quantize": "quantize model int4/",
    "export": "export model out/ --to glm-hf",
    "fill": "fill --model model 今天[MASK]很好",
    "serve": "serve --port 0",
    "trace": "trace x",
    "mcp": "mcp",
    "finetune check": "finetune check rows.json",
    "finetune domain": "finetune domain docs --kb small --model model --out out",
    "finetune prepare": "finetune prepare rows.json out --model model",
    "finetune train": "finetune train rows.json --model model --out out",
    "finetune eval": "finetune eval rows.json --kb small --model model --adapter out",
    "finetune reader": "finetune reader set --kb small",
    "finetune merge": "finetune merge model out merged/",
    "finetune export": "finetune export out out2 --model model",
    "ask --model": "ask 试用期最长几个月？ --kb small --model model",
    "ask --model URL": "ask 试用期最长几个月？ --kb small --model http://127.0.0.1:9/v1#glm",
    "doctor --model": "doctor --model model",
    "ingest --ray": "ingest docs --kb small --ray",
    "ingest milvus": "ingest docs --kb milvus://127.0.0.1:9/x",
}
"""Commands that need one."""
LAW = """# 劳动法

第二条 本法所称试用期，是指用人单位与劳动者为相互了解而约定的考察期。

第三条 本法所称用人单位，是指与劳动者建立劳动关系的企业和个体经济组织。

第四条 本法所称劳动报酬，是指用人单位按照约定支付给劳动者的全部货币收入。

第五条 本法所称工作时间，是指劳动者为履行劳动合同而从事劳动的时间。

第十九条 试用期不得超过六个月。用人单位应当在劳动者入职之日起三十日内与其订立书面劳动合同。

第二十条 固定期限劳动合同的试用期不得超过三个月。
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """The exit code of each command and what it printed."""
    place = tmp_path_factory.mktemp("base")
    for name in ("docs", "set/docs"):
        (place / name).mkdir(parents=True)
        (place / name / "law.md").write_text(LAW, "utf-8")
    questions = [
        {"id": "1", "question": "试用期不得超过几个月？", "answers": ["六个月"], "answerable": True, "language": "zh",
         "kind": "number", "gold": [{"document": "law.md", "quote": "试用期不得超过六个月。"}]},
        {"id": "2", "question": "珠穆朗玛峰有多高？", "answers": [], "answerable": False, "language": "zh",
         "kind": "number", "gold": []},
    ]  # fmt: skip
    lines = [json.dumps(each, ensure_ascii=False) for each in questions]
    (place / "set" / "questions.jsonl").write_text("\n".join(lines), "utf-8")
    (place / "rows.json").write_text('[{"instruction": "问", "output": "答"}]', "utf-8")
    shutil.copytree(COPY / "v3" / "tiny_safetensors", place / "model")
    commands, python = WORKS | NEEDS, os.environ.get("BASE_PYTHON", sys.executable)
    environment = os.environ | {
        "XDG_DATA_HOME": str(place / "data"), "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [python, "-m", "tests.base_install"], cwd=place, env=environment, capture_output=True, text=True,
        input=json.dumps([words.split() for words in commands.values()]), timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, map(tuple, json.loads(done.stdout)), strict=True))


@pytest.mark.parametrize("command", WORKS)
def test_a_command_works_without_extras(results: dict[str, tuple[int, str]], command: str) -> None:
    code, output = results[command]
    assert code == 0, output
    assert "Traceback" not in output


@pytest.mark.parametrize("command", NEEDS)
def test_a_command_names_the_extra_that_it_needs(results: dict[str, tuple[int, str]], command: str) -> None:
    code, output = results[command]
    assert code == 1, output
    assert re.search(
        r"^rag: this needs \S+, which is not installed; run: pip install '.*\[\w+\]'$", output, re.M
    ), output
    assert "Traceback" not in output


def test_every_command_is_tried() -> None:
    pages = re.findall(r"^## rag (.+)$", (ROOT / "docs" / "cli.md").read_text("utf-8"), re.M)
    groups = {page for page in pages if any(other.startswith(f"{page} ") for other in pages)}
    assert set(pages) - groups <= (WORKS | NEEDS).keys()


def test_the_packages_of_every_extra_are_known() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    del extras["test"]
    assert set(extras) <= {each.extra for each in packages().values() if each.use}
    for extra, needs in extras.items():
        names = {re.split(r"[\[>=]", need)[0] for need in needs} - {"chatglm-rag"}
        assert names <= packages().keys(), extra
