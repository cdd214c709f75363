"""`rag plan`: the table, the JSON and the mistakes."""

import json
from pathlib import Path

import pytest

from rag.plan.constants import shipped
from tests.commands import rag

PLAN = ("plan", "--documents", "20000", "--qps", "2")


def run(*words: str, home: Path, locale: str = "C.UTF-8"):
    return rag(
        *words, environment={"XDG_CACHE_HOME": str(home), "LC_ALL": locale, "COLUMNS": "100"}
    )


def test_memory_disk_time_and_machines_are_told_of_each_engine(tmp_path: Path) -> None:
    done = run(*PLAN, home=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in (
        "local store",
        "replicas",
        "Milvus",
        "memory",
        "disk",
        "embed",
        "machines",
        "suffices",
    ):
        assert word in done.stdout
    assert "constants: those shipped, measured on" in done.stdout
    assert "simulated" in done.stdout
    chinese = run(*PLAN, home=tmp_path, locale="zh_CN.UTF-8").stdout
    for word in ("本地库", "多副本", "内存", "磁盘", "机器", "够用", "推算"):
        assert word in chinese


def test_the_plan_as_json(tmp_path: Path) -> None:
    told = json.loads(run(*PLAN, "--json", "--model", "9", home=tmp_path).stdout)
    assert [plan["engine"] for plan in told["plans"]] == ["local", "replicas", "milvus"]
    assert [plan["simulated"] for plan in told["plans"]] == [False, False, True]
    assert told["load"]["documents"] == 20_000
    assert told["first"] in ("local", "replicas", "milvus")
    assert all(plan["writing"]["gpus"] >= 1 for plan in told["plans"])
    one = json.loads(run(*PLAN, "--json", "--engine", "milvus", home=tmp_path).stdout)
    assert [plan["engine"] for plan in one["plans"]] == ["milvus"]


def test_constants_of_this_machine_are_used_where_they_were_measured(tmp_path: Path) -> None:
    shipped().write(tmp_path / "chatglm-rag" / "constants.json")
    done = run(*PLAN, home=tmp_path)
    assert f"constants: {tmp_path}" in done.stdout.replace("\n", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("plan",), "--documents N"),
        (("plan", "--documents", "0"), "--documents is 0"),
        (("plan", "--documents", "5", "--qps", "-1"), "--qps is -1"),
        (("plan", "--documents", "5", "--engine", "oracle"), "--engine is oracle"),
        (("plan", "--documents", "5", "--gpu", "abacus"), "--gpu is abacus"),
        (("plan", "--documents", "5", "--model", "big"), "--model is big"),
        (("plan", "--documents", "5", "--cores", "4"), "name both"),
        (("plan", "--documents", "5", "--cores", "4", "--memory", "-2"), "--memory is -2"),
        (("plan", "--documents", "5", "--full"), "belong to --measure"),
        (("plan", "here", "--documents", "5"), "belong to --measure"),
        (("plan", "--documents", "5", "--constants", "none.json"), "none.json holds no constants"),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = run(*words, home=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


def test_a_mistake_is_told_in_chinese(tmp_path: Path) -> None:
    done = run("plan", "--documents", "0", home=tmp_path, locale="zh_CN.UTF-8")
    assert done.stderr == "rag：--documents 为 0；须不小于 1\n"
