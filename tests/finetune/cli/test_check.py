"""`rag finetune check` as a person types it."""

import json
from pathlib import Path
from typing import Any

import pytest

import rag.cli
from finetune.cli.check import check
from ingest.errors import UserError
from ingest.i18n import translate
from tests.commands import rag
from tests.rag.chatglm.vocabularies import published

DATA = Path(__file__).parents[2] / "data/alpaca"


def run(*words: object, locale: str = "C.UTF-8") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command in a process of its own."""
    environment = {"LC_ALL": locale, "COLUMNS": "100"}
    done = rag("finetune", "check", *words, environment=environment)
    return done.returncode, done.stdout, done.stderr


def test_bad_rows_exit_with_1_and_all_reports(tmp_path: Path) -> None:
    page, record = tmp_path / "a.html", tmp_path / "a.json"
    code, out, err = run(
        DATA / "messy_bad_fields.json", DATA / "messy_truncated.json",
        "--html", page, "--json", record,
    )  # fmt: skip
    assert code == 1
    assert out.startswith("44 rows: 34 usable, 10 bad, 10 with warnings")
    assert "messy_truncated.json:14" in out
    assert "and 5 more" in out  # 5 of 10 duplicates are listed
    assert err.splitlines()[-1].startswith("rag: 10 of 44 rows are bad; correct them")
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert len(json.loads(record.read_text("utf-8"))["findings"]) == 20


def test_clean_rows_exit_with_0_in_the_readers_language() -> None:
    code, out, err = run(DATA / "alpaca_zh.json", locale="zh_CN.UTF-8")
    assert (code, err) == (0, "")
    assert out.startswith("共 12 行：可用 12，有错误 0，有警告 0")


def test_a_row_is_shown_with_what_is_learnt_in_brackets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(published(tmp_path, 3))
    check([DATA / "history_small.json"], model=model, row=["2"])
    out = capsys.readouterr().out
    assert out.startswith("2 rows: 2 usable, 0 bad, 0 with warnings")
    shown = out[out.index("history_small.json:2: ") :]
    assert "history_small.json:1: " not in out
    learnt = shown[shown.index("⟦") : shown.index("⟧")].replace("│", "").replace(" ", "")
    assert learnt == "⟦↵\n不客气，有其他需要帮忙的地方可以继续问我。</s>"


def test_row_explains_a_bad_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="9 of 30 rows are bad"):
        check([DATA / "messy_bad_fields.json"], model=str(published(tmp_path, 3)), row=["4"])
    assert 'messy_bad_fields.json:4: "output" is empty' in capsys.readouterr().out


def test_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    places = {name: tmp_path / f"a.{name}" for name in ("json", "html")}
    for data in ("alpaca_zh.json", "history_small.json"):
        check([DATA / data], **places)
    assert json.loads(places["json"].read_text("utf-8"))["rows"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in places.values()}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"data": [DATA / "nowhere.json"]}, "nowhere.json is missing"),
        ({"model": "{model}", "row": ["99"]}, "there is no row 99"),
        ({"model": "{model}", "template": "x"}, "it is chat | tutorial"),
        ({"model": "{model}", "max_length": 5}, "12 of 12 rows are bad"),
        ({"model": str(DATA)}, "has no tokenizer"),
        ({"row": ["1"]}, "--row shows tokens"),
        ({"html": DATA / "nowhere/a.html"}, "there is no folder"),
        ({"json": DATA / "history_small.json"}, "exists and is not an earlier report"),
        ({"html": DATA}, "is a folder; name a file"),
    ],
)
def test_an_error_names_the_way_out(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    if options.get("model") == "{model}":
        options = {**options, "model": str(published(tmp_path, 3))}
    with pytest.raises(UserError) as raised:
        check(**{"data": [DATA / "alpaca_zh.json"], **options})
    assert says in str(raised.value)
    assert translate(raised.value.message, "zh") != str(raised.value)
