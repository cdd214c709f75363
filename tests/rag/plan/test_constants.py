"""The file of constants: whole, or refused in one line."""

import json
from pathlib import Path

import pytest

from ingest.errors import UserError
from rag.plan.constants import Constants, Kind, shipped


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "constants.json"
    shipped().write(path)
    assert Constants.read(path) == shipped()


def test_kinds_add_up() -> None:
    constants = shipped()
    assert sum(kind.chunks for kind in constants.kinds.values()) == constants.kind().chunks
    assert Kind(1, 2, 3, 4.0) + Kind(1, 1, 1, 1.0) == Kind(2, 3, 4, 5.0)


def broken(change: object) -> str:
    value = json.loads(json.dumps(_as_json()))
    exec_path, new = change  # type: ignore[misc]
    *parents, last = exec_path
    at = value
    for name in parents:
        at = at[name]
    if new is None:
        del at[last]
    else:
        at[last] = new
    return json.dumps(value)


def _as_json() -> dict:
    from importlib.resources import files

    return json.loads(files("rag.plan").joinpath("constants.json").read_text())


@pytest.mark.parametrize(
    "change",
    [
        (("format",), "another 1"),
        (("costs",), None),
        (("costs", "embed"), 0),
        (("costs", "embed"), -1.0),
        (("costs", "embed"), float("nan")),
        (("costs", "embed"), float("inf")),
        (("costs", "embed"), "fast"),
        (("costs", "speed"), 1.0),
        (("machine", "cores"), None),
        (("kinds",), {}),
        (("points",), []),
        (("points", 0, "chunks"), None),
        (("points", 0, "p50"), -1),
    ],
)
def test_a_file_that_is_damaged_is_refused_in_one_line(change: object, tmp_path: Path) -> None:
    path = tmp_path / "constants.json"
    path.write_text(broken(change))
    with pytest.raises(UserError, match="holds no constants of this program") as caught:
        Constants.read(path)
    assert "\n" not in f"{caught.value}{caught.value.zh}"
    assert str(path) in caught.value.zh


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "\xff", "{}"])
def test_a_file_that_is_no_such_json_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "constants.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="holds no constants"):
        Constants.read(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        Constants.read(tmp_path / "none.json")
