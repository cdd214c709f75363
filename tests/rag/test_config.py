"""A well-formed rag.toml becomes options; anything else is one line that says what to write."""

import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import UserError
from ingest.i18n import translate
from rag.config import Config, change_settings, read_config, read_sections


@dataclass(frozen=True)
class Rerank:
    model: str = "none"
    depth: int = 20


@dataclass(frozen=True, kw_only=True)
class Retrieve:
    top: int = 8
    weight: float = 0.5
    fold: bool = True
    fusion: Literal["rank", "score"] = "rank"
    cache: str | None = None
    rerank: Rerank = field(default_factory=Rerank)

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UserError(f"top is {self.top}; need 1 or more", zh=f"top 为 {self.top}，至少为 1")


@dataclass(frozen=True)
class Chunk:
    chunk_tokens: int = 192
    passage_tokens: int = 448


SECTIONS = {"chunk": Chunk, "retrieve": Retrieve}


def load(folder: Path, text: str | bytes) -> dict[str, Any]:
    path = folder / "rag.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_sections(path, SECTIONS)


def test_without_a_file_all_is_default(tmp_path: Path) -> None:
    assert read_sections(tmp_path / "rag.toml", SECTIONS) == load(tmp_path, "") == {}
    assert load(tmp_path, "[chunk]") == {"chunk": Chunk()}
    assert read_config(tmp_path) == Config(tmp_path)


def test_every_kind_of_field_is_read_sections(tmp_path: Path) -> None:
    text = """\ufeff
    [retrieve]
    top = 3
    weight = 1
    fold = false
    fusion = "score"
    cache = "缓存"
    [retrieve.rerank]
    model = "m"
    """
    options = load(tmp_path, text)["retrieve"]
    assert options == Retrieve(
        top=3, weight=1.0, fold=False, fusion="score", cache="缓存", rerank=Rerank("m")
    )
    assert isinstance(options.weight, float)


@given(st.builds(Chunk, st.integers(0, 999), st.integers(0, 999)))
def test_what_is_written_is_read_sections(tmp_path_factory: pytest.TempPathFactory, options: Chunk) -> None:
    lines = [f"{one.name} = {getattr(options, one.name)}" for one in fields(options)]
    folder = tmp_path_factory.mktemp("kb")
    assert load(folder, "\n".join(["[chunk]", *lines]))["chunk"] == replace(options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[chunk]\nchunk_token = 9", "unknown key chunk_token in [chunk] (did you mean chunk_tokens?)"),
        ("[chunk]\nzzz = 9", "unknown key zzz in [chunk]; its keys are chunk_tokens, passage_tokens"),
        ("[chunk]\nfusion = 9", "unknown key fusion in [chunk] (did you mean [retrieve] fusion?)"),
        ("[retrive]", "unknown section [retrive] (did you mean [retrieve]?); the sections are [chunk]"),
        ("[zzz]", "unknown section [zzz]; the sections are [chunk], [retrieve]"),
        ("top = 3", "top is in no section; put it below [retrieve]"),
        ("chunk = 3", "chunk is 3; it must be a section; write [chunk]"),
        ('[chunk]\nchunk_tokens = "many"', '[chunk] chunk_tokens is "many"; it must be a whole number'),
        ("[chunk]\nchunk_tokens = true", "[chunk] chunk_tokens is true; it must be a whole number"),
        ("[chunk]\nchunk_tokens = 1.5", "[chunk] chunk_tokens is 1.5; it must be a whole number"),
        ("[retrieve]\nweight = []", "[retrieve] weight is []; it must be a number"),
        ("[retrieve]\nfold = 1", "[retrieve] fold is 1; it must be true or false"),
        ("[retrieve]\ncache = 1", "[retrieve] cache is 1; it must be a text"),
        ('[retrieve]\nfusion = "max"', 'fusion is "max"; it must be one of "rank", "score"'),
        ("[retrieve]\nrerank = 1", "[retrieve] rerank is 1; it must be a section"),
        ("[retrieve.rerank]\ndeep = 1", "unknown key deep in [retrieve.rerank] (did you mean depth?)"),
        ("[retrieve]\ntop = 0", "rag.toml: top is 0; need 1 or more"),
        ("[retrieve", "is not valid TOML"),
        ("a = 1\na = 2", "is not valid TOML"),
        (b"# \xb5\xda", "is not UTF-8 (byte 2); save it as UTF-8"),
    ],
)
def test_a_mistake_is_one_line_with_the_way_out(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    for line in (str(caught.value), translate(caught.value.message, "zh")):
        assert "rag.toml" in line
        assert "\n" not in line
    assert message in str(caught.value)
    assert translate(caught.value.message, "zh") != str(caught.value)


def test_a_folder_in_its_place_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_sections(tmp_path, SECTIONS)


USED = {"generate": {"model": "/m", "adapter": '/a b"c'}}
LINES = 'model = "/m"\nadapter = "/a b\\"c"\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"[generate]\n{LINES}"),
        ("[read]\n", f"[read]\n\n[generate]\n{LINES}"),
        ("[read]", f"[read]\n[generate]\n{LINES}"),
        ("\ufeff[ generate ] # x\nseed = 1\n", f"\ufeff[ generate ] # x\nseed = 1\n{LINES}"),
        ("[generate]\r\n# x\r\n", f"[generate]\n# x\n{LINES}".replace("\n", "\r\n")),
        ("[generate]", f"[generate]\n{LINES}"),
        ("generate = {seed = 1}\n", 'generate = {seed = 1,model = "/m",adapter = "/a b\\"c"}\n'),
        ('x = """\n[generate]\n"""\n', f'x = """\n[generate]\n"""\n\n[generate]\n{LINES}'),
        ("[generate.endpoint]\ntries = 1\n", f"[generate]\n{LINES}\n[generate.endpoint]\ntries = 1\n"),
    ],
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_settings_are_added_and_all_else_stays(
    before: str, after: str, overwrite: bool, tmp_path: Path
) -> None:
    file, link = tmp_path / "rag.toml", tmp_path / "link"
    link.symlink_to(file)
    if before:
        file.write_bytes(before.encode())
    for _ in range(2):  # the second time it stands there already
        assert change_settings(link, USED, overwrite=overwrite)
        assert file.read_bytes().decode() == after
    assert link.is_symlink()
    assert tomllib.loads(after.removeprefix("\ufeff"))["generate"].items() >= USED["generate"].items()


@pytest.mark.parametrize(
    ("text", "overwrite"),
    [
        ('[generate]\nmodel = "other"\n', False),
        ('generate.adapter = "other"\n', False),
        ("[[generate]]\nseed = 1\n", True),
        ("generate = 1\n", True),
        ("[generate\n", True),
        (b"# \xb5\xda\n", True),
    ],
)
def test_settings_that_can_not_be_changed_stay(text: str | bytes, overwrite: bool, tmp_path: Path) -> None:
    file = tmp_path / "rag.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert not change_settings(file, USED, overwrite=overwrite)
    assert file.read_bytes() == (text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("before", "reader", "after"),
    [
        ("[read]  # mine\npassages = 3\n", "new", '[read]  # mine\npassages = 3\nreader = "new"\n'),
        ('[read]\n  reader="old" # why\n# end', "new", '[read]\n  reader="new" # why\n# end'),
        ("[read]\r\nreader = 'old'\r\n", "new", '[read]\r\nreader = "new"\r\n'),
        ("read.reader = 'old'\n", "new", 'read.reader = "new"\n'),
        ('[read]\nreader = """old"""\n', "new", '[read]\nreader = "new"\n'),
        ('[read]\nreader = "old" # why\n# end\n', None, "[read]\n# end\n"),
        ("[retrieve]\n", None, "[retrieve]\n"),
    ],
)
def test_a_setting_is_replaced_or_deleted(
    before: str, reader: str | None, after: str, tmp_path: Path
) -> None:
    file = tmp_path / "rag.toml"
    file.write_bytes(before.encode())
    assert change_settings(file, {"read": {"reader": reader}})
    assert file.read_bytes().decode() == after
