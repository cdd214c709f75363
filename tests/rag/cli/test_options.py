"""One definition of an option, and what is said about a wrong one."""

from dataclasses import dataclass
from pathlib import Path
from string import Formatter

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ingest.embed import BUNDLED
from ingest.errors import UserError
from rag.cli.app import usage_message, usage_templates
from rag.cli.options import argument, option, with_options
from server.options import ServerOptions
from tests.commands import rag as command


@dataclass(frozen=True)
class Shape:
    width: int = option("--width -w N", "How wide.", default=3, least=1)
    names: tuple[str, ...] = option("--name NAME", "What it is called.", default=("square",))
    area: float = option("--area", "Its area.", default=9.0, typed="9", read=float)
    hidden: int = 7
    round: bool = option("--round/--no-round", "Whether it is round.", default=False)

    def __post_init__(self) -> None:
        if self.round and self.width == 1:
            raise UserError("--round has no --width 1; give 2 or more")


@dataclass(frozen=True, kw_only=True)
class Ink:
    color: str = option("--color", "Its color.", default=...)


drawn: list[object] = []


@with_options("Draw a shape.")
def draw(place: Path = argument("PLACE", "Where."), *, shape: Shape, ink: Ink) -> None:
    drawn.append((place, shape, ink))


def run(*words: str) -> object:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(draw)
    drawn.clear()
    done = CliRunner().invoke(app, words)
    if isinstance(done.exception, UserError):
        raise done.exception
    return drawn[0] if drawn else (done.exit_code, done.output)


def test_a_command_gets_the_dataclasses() -> None:
    assert run("here", "--color", "red") == (Path("here"), Shape(), Ink(color="red"))
    words = ("-w", "4", "--name", "a", "--name", "b", "--area", "16", "--round")
    assert run("here", "--color", "red", *words) == (
        Path("here"),
        Shape(4, ("a", "b"), 16.0, round=True),
        Ink(color="red"),
    )


def test_a_command_can_be_called_with_its_options_by_name() -> None:
    drawn.clear()
    draw(Path("here"), width=4, color="red")
    assert drawn == [(Path("here"), Shape(4), Ink(color="red"))]
    with pytest.raises(TypeError):
        draw(Path("here"))


def test_values_are_checked_by_typer_and_by_the_dataclass() -> None:
    for words in (["here"], ["here", "--color", "red", "-w", "0"], ["--color", "red"]):
        code, _ = run(*words)  # type: ignore[misc]
        assert code == 2
    with pytest.raises(UserError, match="--round has no --width 1"):
        run("here", "--color", "red", "--round", "-w", "1")


def test_the_help_has_each_field_with_its_default() -> None:
    _, text = run("--help")  # type: ignore[misc]
    for line in ("-w, --width N", "How wide.  [default: 3; x>=1]", "[default: no-round]", "Draw a"):
        assert line in text
    assert "hidden" not in text


@pytest.mark.parametrize("template", usage_templates())
def test_a_template_of_typer_finds_its_fields(template: str) -> None:
    names = {name: f"'--{name}'" for _, name, _, _ in Formatter().parse(template) if name}
    text = template.format(**names)
    assert usage_message(text) == text
    assert getattr(usage_message(text), "template", "") == template


@given(st.text())
def test_a_message_of_typer_keeps_its_text(text: str) -> None:
    assert str(usage_message(text)) == text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("ask --xyz", "没有选项 --xyz"),
        ("search x --limmit 3", "没有选项 --limmit（相近的选项：--limit）"),
        ("search x --limit 0", "'--limit' / '-n' 的值无效：须不小于 1"),
        ("plan --documents x", "'--documents' 的值无效：须为整数"),
        ("ingest", "缺少参数 'PATH'"),
        ("plan", "缺少选项 '--documents'"),
        ("ask --model", "选项 '--model' 需要一个值"),
        ("kb lst", "没有命令 'lst'；你是不是想用 'list'？"),
        ("ask a b", "多余的参数：b"),
    ],
)
def test_a_wrong_option_is_reported_in_chinese(words: str, says: str) -> None:
    done = command(*words.split(), environment={"LC_ALL": "zh_CN.UTF-8", "COLUMNS": "100"})
    assert done.returncode == 2
    *usage, error = done.stderr.splitlines()
    assert error == f"错误：{says}"
    if usage:  # typer does not name the command in each of its errors
        assert usage[0].startswith(f"用法：rag {words.split()[0]}")
        assert usage[1].endswith("-h' 查看帮助。")


def test_a_wrong_option_is_reported_in_english() -> None:
    done = command("search", "x", "--limmit", "3", environment={"LC_ALL": "C.UTF-8"})
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "Usage: rag search [OPTIONS] [question]",
        "Try 'rag search -h' for help.",
        "",
        "Error: No such option: --limmit (Possible options: --limit)",
    ]


def test_a_group_without_a_command_shows_its_help() -> None:
    done = command("kb", environment={"LC_ALL": "C.UTF-8"})
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: rag kb [OPTIONS] COMMAND")
    assert "calibrate" in done.stderr


def test_the_usual_encoder_is_the_bundled_one() -> None:
    assert ServerOptions().embedders == (BUNDLED,)
