"""Every `rag` command of the READMEs and the guides runs, with the result that its page states.

Those that need a model, an engine or another server run in the tests of these; `ELSEWHERE` names them.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/quickstart.md", "docs/scale.md", "docs/deploy.md"]
PAGES += [page.replace(".md", ".zh-CN.md") for page in PAGES]
CHINESE = {"文档": "documents", "目录": "DIR", "编号": "ID", "……": "…"}
RUNS = {
    r"ingest \S+/documents( --kb laws)?$": r"2 added",
    r"ask 试用期最长不得超过几个月？$": r"(?s)六个月.*\[1\] 劳动合同法\.md",
    r"ask --in documents/\*\.md 试用期最长不得超过几个月？$": r"(?s)六个月.*\[1\] 劳动合同法\.md",
    r"ask --json ": r'"start": \d+, "end": \d+, "quote": "第十七条',
    r"chat$": r"Ask a question",
    r"search 竞业限制$": r"(?s)1\. 劳动合同法\.md.*竞业限制",
    r"kb info$": r"documents: 2",
    r"kb verify laws$": r"all is well",
    r"kb snapshot laws\.kb laws$": r"laws\.kb",
    r"keys create \w+ --scope read:laws$": r"(?m)^rag-\w{12}-.{43}$",
    r"doctor --model \S+/chatglm3-6b$": r"(?s)GB.*int4.*free:",
    r"eval corpora/laws( --save reports/)?$": r"Refusal AUROC",
    r"eval corpora/laws --settings rag.toml --against reports/$": r"(?i)against|difference|before",
    r"kb calibrate corpora/laws laws$": r"refusing below a confidence of",
    r"finetune grounded laws rows/$": r"rows",
    r"finetune grounded laws pairs/ --preferences pairs.jsonl$": r"pairs\.jsonl",
    r"finetune exam laws -o exam.jsonl$": r"exam\.jsonl",
    r"finetune check data.json --html report.html$": r"1",
    r"plan --documents 200000 --qps 20( --kind pdf\+ocr| --model 9)?$": r"(?i)memory",
}
"""A command -> what it must print."""
ELSEWHERE = {
    r"(ingest|ask) .*milvus://|serve --store": "tests/rag/cli/test_milvus.py",
    r"ingest .* --ray$": "tests/rag/cli/test_ingest_ray.py",
    r"(ask|chat|doctor|serve) .*http://": "tests/server/test_served_elsewhere.py",
    r"(ask|chat) --model|serve --model int4/": "tests/test_generate_end_to_end.py",
    r"quantize |export |fill ": "tests/rag/cli/test_models.py",
    r"serve( --demo)?$|trace ID|mcp$|ingest /srv/laws": "tests/server/test_commands.py",
    r"finetune domain ": "tests/finetune/cli/test_domain.py",
    r"finetune train ": "tests/finetune/cli/test_train.py",
    r"finetune eval ": "tests/finetune/cli/test_evaluate.py",
    r"finetune merge ": "tests/finetune/cli/test_merge.py",
    r"finetune export ": "tests/finetune/test_export.py",
    r"plan .*--constants mine.json": "tests/rag/cli/test_plan.py",
    r"keys create alice --scope (read:laws|admin)": "tests/server/test_commands.py",
}
"""A command -> the tests that run it."""


def commands() -> list[str]:
    """The `rag` commands of all pages in order, in English words, each once."""
    found: dict[str, None] = {}
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                typed = re.split(r"\s+#", line)[0]
                for chinese, english in CHINESE.items():
                    typed = typed.replace(chinese, english)
                if match := re.match(r"(?:accelerate .* -m )?rag(?:-service)? (.*)", typed):
                    found[" ".join(shlex.split(match[1]))] = None
    return [*found]


def matching(command: str, table: dict[str, str]) -> str | None:
    return next((value for pattern, value in table.items() if re.match(pattern, command)), None)


COMMANDS = commands()
RUN = [command for command in COMMANDS if matching(command, RUNS)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    home = tmp_path_factory.mktemp("home")
    corpus = ROOT / "corpora" / "laws"
    for folder in ("documents", "corpora/laws/docs", "models/chatglm3-6b"):
        (home / folder).mkdir(parents=True)
    law = (corpus / "docs" / "劳动合同法.md").read_text("utf-8")
    start, end = law.index("第十条"), law.index("第二十六条")
    for folder in ("documents", "corpora/laws/docs"):  # no more than the pages ask about
        (home / folder / "劳动合同法.md").write_text(f"# 劳动合同法\n\n{law[start:end]}", "utf-8")
        (home / folder / "poem.txt").write_text("床前明月光，疑是地上霜。\n", "utf-8")
    lines = (corpus / "questions.jsonl").read_text("utf-8").splitlines()
    known = [each for each in lines if all(g["quote"] in law[start:end] for g in json.loads(each)["gold"])]
    asked = [each for each in known if json.loads(each)["answerable"]][:4]
    asked += [each for each in known if not json.loads(each)["answerable"]][:3]
    (home / "corpora/laws/questions.jsonl").write_text("\n".join(asked), "utf-8")
    (home / "rag.toml").write_text("[retrieve]\npassages = 3\n", "utf-8")
    (home / "data.json").write_text('[{"instruction": "问", "output": "答"}]', "utf-8")
    shutil.copy(ROOT / "tests/golden/v3/tiny_safetensors/config.json", home / "models/chatglm3-6b")
    environment = os.environ | {
        "XDG_DATA_HOME": str(home / "data"), "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT), "COLUMNS": "200",
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")), "HOME": str(home),
    }  # fmt: skip
    first = f"ingest {home}/documents --kb laws"
    words = [command.replace("~", str(home)).split() for command in [first, *RUN]]
    done = subprocess.run(
        [sys.executable, "-m", "tests.base_install", "--with-extras"], cwd=home, env=environment,
        input=json.dumps(words), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(RUN, map(tuple, json.loads(done.stdout)[1:]), strict=True))


@pytest.mark.parametrize("command", RUN)
def test_a_command_does_what_its_page_says(results: dict[str, tuple[int, str]], command: str) -> None:
    code, output = results[command]
    assert code == 0, output
    assert re.search(matching(command, RUNS) or "", output), output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_run(command: str) -> None:
    elsewhere = matching(command, ELSEWHERE)
    assert matching(command, RUNS) or elsewhere, "run it here, or name the test that does"
    assert elsewhere is None or (ROOT / elsewhere).exists()
