"""Files -> records: what they are called in findings, broken files, encodings, memory."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.reader import Record, records
from finetune.types import Finding
from ingest.errors import UserError
from ingest.i18n import translate

DATA = Path(__file__).parents[2] / "data/alpaca"
ROWS = json.loads((DATA / "alpaca_zh.json").read_text("utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def read(path: Path) -> list[Record | Finding]:
    return list(records(path))


def values(path: Path) -> list[object]:
    return [item.value for item in records(path) if isinstance(item, Record)]


def file(folder: Path, content: str | bytes, name: str = "a.json") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(VALUES, min_size=1, max_size=8),
    indent=st.sampled_from([None, 0, 2]),
    blanks=st.text(" \t\n", max_size=40),
)
def test_an_array_gives_its_values(
    rows: list[object], indent: int | None, blanks: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = file(tmp_path_factory.mktemp("a"), blanks + json.dumps(rows, indent=indent) + blanks)
    assert values(path) == rows
    assert [item.source for item in records(path)] == [
        f"a.json:{number}" for number in range(1, len(rows) + 1)
    ]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(), VALUES, min_size=1), min_size=1, max_size=6),
    between=st.sampled_from(["", "\n", "\n\n", ",\n"]),
)
def test_objects_over_several_lines_are_rows(
    rows: list[object], between: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = between.join(json.dumps(row, indent=1) for row in rows)
    assert values(file(tmp_path_factory.mktemp("a"), text + "\n")) == rows


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), VALUES), min_size=1, max_size=6), data=st.data())
def test_lines_are_numbered_as_an_editor_does(
    rows: list[object], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines: list[str] = []
    places: list[int] = []
    for row in rows:
        lines += [""] * data.draw(st.integers(0, 2))
        lines.append(json.dumps(row, ensure_ascii=data.draw(st.booleans())))
        places.append(len(lines))
    text = data.draw(st.sampled_from(["\n", "\r\n"])).join(lines)
    if any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in text.replace("\r\n", "")):
        text = "\n".join(json.dumps(json.loads(line)) if line else "" for line in lines)
    path = file(tmp_path_factory.mktemp("a"), text)
    assert [(item.source, item.value) for item in records(path) if isinstance(item, Record)] == [
        (f"a.json:{place}", row) for place, row in zip(places, rows, strict=True)
    ]


@pytest.mark.parametrize("escaped", [True, False])
def test_an_array_cut_anywhere_gives_its_whole_rows_and_one_finding(escaped: bool, tmp_path: Path) -> None:
    rows = ROWS[:2]
    made = [json.dumps(rows[:n], ensure_ascii=escaped, indent=1).encode() for n in (1, 2)]
    ends = [len(text) - len("\n]") for text in made]
    # Two or three characters and a part of one are too few to tell an encoding by.
    for cut in range(1 if escaped else 80, len(made[-1])):
        *whole, last = read(file(tmp_path, made[-1][:cut]))
        assert [item.value for item in whole if isinstance(item, Record)] == (
            rows[: sum(end <= cut for end in ends)]
        )
        assert isinstance(last, Finding)
        assert (last.problem, last.bad) == ("ended", True)
        assert last.source == f"a.json:{len(whole) + 1}"


@pytest.mark.parametrize(
    ("text", "whole", "place"),
    [
        ('[{"a": 1},\n {"b": 2}\n {"c": 3}]', 2, "line 3, column 2"),
        ('[{"a": 1},\n {"b" 2}, {"c": 3}]', 1, "line 2, column 7"),
        ('[{"a": 1},\n]', 1, "line 2, column 1"),
        ('[{"a": 1}] [', 1, "line 1, column 12"),
        ('[{"a": "1\n"}]', 0, "line 1, column 10"),
        ("[" + "[" * 100_000, 0, "line 1, column 2"),
        (f"[{'9' * 5000}]", 0, "line 1, column 2"),
        ("\n\n[" + "1, " * 9_999 + "nil]", 9_999, f"line 3, column {3 * 9_999 + 2}"),
    ],
)
def test_the_place_where_an_array_breaks_is_reported(
    text: str, whole: int, place: str, tmp_path: Path
) -> None:
    *before, last = read(file(tmp_path, text))
    assert len(before) == whole
    assert all(isinstance(item, Record) for item in before)
    assert isinstance(last, Finding)
    assert place in last.text


def test_a_key_that_occurs_twice_makes_its_row_bad(tmp_path: Path) -> None:
    rows = ['{"a": 1}', '{"a": 1, "b": {"c": 2, "c": 3}}', '{"a": 4}']
    for text in ("\n".join(rows), f"[{','.join(rows)}]"):
        first, twice, last = read(file(tmp_path, text))
        assert isinstance(twice, Finding)
        assert (twice.source, twice.problem, twice.bad) == ("a.json:2", "broken", True)
        assert '"c"' in twice.text
        assert isinstance(first, Record)
        assert last == Record("a.json:3", {"a": 4})
    *_, broken = read(file(tmp_path, '[{"a": 1},\n {"a": 1, "a": 2, x}]'))
    assert isinstance(broken, Finding)
    assert broken.problem == "ended"


def test_a_broken_line_leaves_the_others(tmp_path: Path) -> None:
    found = read(DATA / "messy_broken_lines.jsonl")
    broken = [item for item in found if isinstance(item, Finding)]
    assert [item.source for item in broken] == ["messy_broken_lines.jsonl:5", "messy_broken_lines.jsonl:15"]
    assert len(found) == 15  # of 16 lines one is blank
    nested = file(tmp_path, "[".join(['{"a": 1}\n', *[""] * 100_000]) + '\n{"a": 2}\n')
    assert [type(item) for item in read(nested)] == [Record, Finding, Record]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "gbk", "gb18030", "utf-16", "utf-16-le", "utf-16-be", "big5"]
)
def test_the_encoding_is_found(encoding: str, tmp_path: Path) -> None:
    rows = ROWS if encoding != "big5" else [{"a": "請說明為什麼減少碳足跡很重要。這是一個問題。"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for text in (json.dumps(rows, ensure_ascii=False, indent=1), lines):
        assert values(file(tmp_path, text.encode(encoding))) == rows


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16"])
@pytest.mark.parametrize("form", ["array", "lines", "table"])
def test_only_the_row_with_undecodable_bytes_is_bad(encoding: str, form: str, tmp_path: Path) -> None:
    texts = [row["instruction"] for row in ROWS]
    made: dict[str, Callable[[], str]] = {
        "array": lambda: json.dumps([{"a": text} for text in texts], ensure_ascii=False),
        "lines": lambda: "\n".join(json.dumps({"a": text}, ensure_ascii=False) for text in texts),
        "table": lambda: "a\n" + "\n".join(texts),
    }
    word = texts[3].encode(encoding)[-8:]
    broken = {"utf-8": b"\xff", "gb18030": b"\xff", "utf-16": b"\x00\xd8"}[encoding]
    raw = made[form]().encode(encoding).replace(word, word[:4] + broken + word[4:], 1)
    name = "a.csv" if form == "table" else "a.json"
    found = read(file(tmp_path, raw, name))
    bad = [item for item in found if isinstance(item, Finding)]
    assert len(found) == len(ROWS)
    assert [item.source for item in bad] == [f"{name}:{4 + (form == 'table')}"]
    assert bad[0].problem == "encoding"


def test_a_cell_may_be_longer_than_python_allows_by_itself(tmp_path: Path) -> None:
    text = "字" * 140_000
    assert values(file(tmp_path, f"q,a\n一,{text}\n二,三\n", "a.csv")) == [
        {"q": "一", "a": text},
        {"q": "二", "a": "三"},
    ]


def test_a_csv_file_gives_its_rows(tmp_path: Path) -> None:
    text = '\ufeffq,a\n一,"两\n行"\n\n三,四,五\n六,七\n'
    found = read(file(tmp_path, text, "a.CSV"))
    assert found[0] == Record("a.CSV:2", {"q": "一", "a": "两\n行"})
    assert isinstance(found[1], Finding)
    assert (found[1].source, found[1].text) == ("a.CSV:4", "the row has 3 cells, the header 2")
    assert found[2] == Record("a.CSV:5", {"q": "六", "a": "七"})
    *_, last = read(file(tmp_path, 'q,a\n一,二\n三,"四\n', "a.csv"))
    assert isinstance(last, Finding)
    assert last.problem == "ended"
    assert last.source == "a.csv:3"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "missing"),
        (b"", "empty"),
        (b"\xef\xbb\xbf \n", "empty"),
        ("第一章 总则\n第一条\n", "neither"),
        ('{\n "instruction": "问",\n "output": 答\n}\n', "neither"),
        (bytes(range(256)) * 50, "not text"),
    ],
)
def test_files_that_are_not_data_are_an_error_of_one_line(
    content: str | bytes | None, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json" if content is None else file(tmp_path, content)
    with pytest.raises(UserError, match=says) as raised:
        read(path)
    assert translate(raised.value.message, "zh") != str(raised.value)
    with pytest.raises(UserError, match="folder"):
        read(tmp_path)


def test_a_large_file_of_lines_is_not_loaded_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("w", encoding="utf-8") as target:
        for number in range(20_000):
            target.write(json.dumps({"number": number, "text": "知" * 200}, ensure_ascii=False) + "\n")
    found = records(path)
    tracemalloc.start()
    assert isinstance(next(found), Record)
    tracemalloc.reset_peak()  # the encoding was judged from the whole file, in larger pieces
    count = sum(isinstance(item, Record) for item in found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 19_999
    assert path.stat().st_size > 12_000_000
    assert peak < 2_000_000
