"""`rag plan`: the table, the JSON and the mistakes."""

import json
from pathlib import Path

import pytest

from tests.commands import rag

ROOT = Path(__file__).parents[3]
PLAN = ("plan", "--documents", "20000", "--qps", "2")


def run(*words: str, locale: str = "C.UTF-8"):
    return rag(*words, environment={"LC_ALL": locale, "COLUMNS": "100"})


def test_memory_disk_time_and_machines_of_each_engine_are_shown() -> None:
    done = run(*PLAN)
    assert done.returncode == 0, done.stderr
    for word in (
        "local store", "replicas", "Milvus", "memory", "disk", "machines", "suffices",
        "constants: shipped", "simulated",
    ):  # fmt: skip
        assert word in done.stdout
    chinese = run(*PLAN, locale="zh_CN.UTF-8").stdout
    for word in ("本地库", "多副本", "内存", "磁盘", "机器", "够用", "推算"):
        assert word in chinese


def test_the_plan_as_json() -> None:
    value = json.loads(run(*PLAN, "--json", "--model", "9").stdout)
    assert [plan["engine"] for plan in value["plans"]] == ["local", "replicas", "milvus"]
    assert [plan["simulated"] for plan in value["plans"]] == [False, False, True]
    assert value["workload"]["documents"] == 20_000
    assert value["smallest"] in ("local", "replicas", "milvus")
    assert all(plan["generation"]["gpus"] >= 1 for plan in value["plans"])
    one = json.loads(run(*PLAN, "--json", "--engine", "milvus").stdout)
    assert [plan["engine"] for plan in one["plans"]] == ["milvus"]


def test_a_file_of_constants_is_read(tmp_path: Path) -> None:
    constants = json.loads((ROOT / "rag" / "plan.json").read_bytes())
    constants["costs"]["sqlite"] *= 2
    path = tmp_path / "constants.json"
    path.write_text(json.dumps(constants))
    assert str(path) in run(*PLAN, "--constants", str(path)).stdout.replace("\n", "")
    value = json.loads(run(*PLAN, "--json", "--constants", str(path)).stdout)
    shipped = json.loads(run(*PLAN, "--json").stdout)
    assert value["constants"]["file"] == str(path)
    assert value["plans"][0]["disk"] > shipped["plans"][0]["disk"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--documents", "0"), "--documents is 0"),
        (("--documents", "5", "--qps", "-1"), "--qps is -1"),
        (("--documents", "5", "--engine", "oracle"), "--engine is oracle"),
        (("--documents", "5", "--gpu", "abacus"), "--gpu is abacus"),
        (("--documents", "5", "--model", "big"), "--model is big"),
        (("--documents", "5", "--model", "0"), "--model is 0"),
        (("--documents", "5", "--cores", "4"), "give both"),
        (("--documents", "5", "--cores", "4", "--memory", "-2"), "--memory is -2"),
        (("--documents", "5", "--megabytes", "1", "--chunks-per-document", "2"), "give one of"),
        (("--documents", "5", "--kind", "scroll"), "--kind is scroll"),
        (("--documents", "5", "--constants", "none.json"), "none.json is not a valid file"),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], says: str) -> None:
    done = run("plan", *words)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


def test_a_mistake_is_reported_in_chinese() -> None:
    done = run("plan", "--documents", "0", locale="zh_CN.UTF-8")
    assert done.stderr == "rag：--documents 为 0；须大于 0 且不超过 1e+12\n"
