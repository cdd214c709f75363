"""Options of rows mean the same in `prepare` and `train`, and none is without effect in silence."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rag.cli  # noqa: F401  (before what it mounts)
from finetune.cli import app
from finetune.cli.options import RowOptions
from finetune.cli.prepare import TokenOptions
from finetune.data.dataset import TokenSet
from finetune.data.template import RowEncoder, TutorialOptions
from finetune.options import MAX_LENGTH, TrainOptions
from ingest.errors import UserError
from ingest.i18n import translate
from tests.finetune.tokenizers import directory
from tests.rag.chatglm.golden import COPY


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of models without weights."""
    folder = tmp_path_factory.mktemp("models")
    found: dict[int, Path] = {}
    for generation in (2, 3):
        place = found[generation] = directory(folder / str(generation), generation)
        config = json.loads((COPY / f"v{generation}/tiny_safetensors/config.json").read_text("utf-8"))
        size = {"vocab_size": 130528} if generation == 1 else {"padded_vocab_size": 65024}
        (place / "config.json").write_text(json.dumps(config | size), "utf-8")
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"instruction": "问题" * n, "input": "入" * (n % 3), "output": "回答" * (20 - n)}
        for n in range(1, 20)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), "utf-8")
    return tmp_path / "rows.json"


def output_of(*words: object) -> str:
    """The mistake that the command ends in, or nothing."""
    done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=True)
    if isinstance(done.exception, UserError):
        assert translate(done.exception.message, "zh") != str(done.exception)
        return str(done.exception)
    assert done.exit_code == 0, done.output + str(done.exception)
    return ""


def test_max_length_is_one_option(models: dict[int, Path]) -> None:
    assert TrainOptions().max_length == RowEncoder(None, 3).max_length == MAX_LENGTH
    assert RowOptions().form() == ("chat", MAX_LENGTH)


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        (3, ""), (3, "--max-length 40"), (2, "--template tutorial"),
        (3, "--max_source_length 20 --max_target_length 9"),
    ],
)  # fmt: skip
def test_training_has_the_rows_that_prepare_writes(
    models: dict[int, Path], data: Path, tmp_path: Path, generation: int, words: str
) -> None:
    """A set in the cache is named by all that decides about it: the second finds the first one's."""
    model, cache = models[generation], tmp_path / "home" / "chatglm-rag" / "tokens"
    assert output_of("prepare", data, tmp_path / "set", "--model", model, *words.split()) == ""
    prepared = list(cache.iterdir())
    assert len(prepared) == 1
    assert len(TokenSet(tmp_path / "set")) > 0
    out = ("--out", tmp_path / "out", "--dev-share", 0, "--device", "cpu")
    training = output_of("train", data, "--model", model, *out, *words.split())
    assert "weights" in training  # there are none: all that comes before went well
    assert list(cache.iterdir()) == prepared


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("prepare --max-length 90 --max-target-length 9", "are both given"),
        ("train --max-length 90 --max-target-length 9", "are both given"),
        ("prepare --max-seq-length 90 --max-length 9", "tokens, which have no --max-length"),
        ("prepare --skip-overlength --max-source-length 9", "no --max-source-length"),
        ("prepare --skip-overlength --template chat", "--skip-overlength writes the tutorial's"),
        ("prepare --max-seq-length 2", "no room for a token"),
    ],
)
def test_contradictory_options_are_an_error(
    models: dict[int, Path], data: Path, tmp_path: Path, words: str, message: str
) -> None:
    command, *options = words.split()
    place = [tmp_path / "set"] if command == "prepare" else ["--out", tmp_path / "out"]
    assert message in output_of(command, data, *place, "--model", models[2], *options)


@pytest.mark.parametrize("words", ["--max-length 0", "--max-source-length 0"])
@pytest.mark.parametrize("command", ["prepare", "train"])
def test_numbers_out_of_range_are_refused(command: str, words: str) -> None:
    done = CliRunner().invoke(app, [command, "a", "b", "--model", "m", *words.split()])
    assert done.exit_code == 2
    assert words.split()[0] in done.output


def test_a_prepared_folder_fixes_the_template(models: dict[int, Path], data: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "set", ("--out", tmp_path / "out", "--device", "cpu")
    output_of("prepare", data, folder, "--model", models[2], "--skip-overlength")
    training = ("train", folder, "--model", models[2], *out)
    assert "weights" in output_of(*training)
    for words in (("--max-length", 90), ("--max-source-length", 9)):
        assert f"prepared already, but {words[0]} is given" in output_of(*training, *words)
    assert "prepared for template tutorial" in output_of(*training, "--template", "chat")


@pytest.mark.parametrize(
    ("given", "skip", "options"),
    [
        (None, False, None),
        (None, True, TutorialOptions(384, skip_overlength=True)),
        (9, False, TutorialOptions(9)),
        (9, True, TutorialOptions(9, skip_overlength=True)),
    ],
)
def test_missing_options_default_to_the_tutorials(
    given: int | None, skip: bool, options: TutorialOptions | None
) -> None:
    assert TokenOptions(max_seq_length=given, skip_overlength=skip).tutorial() == options
    tutorial = TokenOptions("tutorial", max_seq_length=given, skip_overlength=skip)
    assert tutorial.tutorial() == options


def test_one_of_thudm_s_lengths_has_the_other_s_default() -> None:
    assert RowOptions(max_source_length=64).form()[1] == 64 + 128
    assert RowOptions(max_target_length=64).form()[1] == 1024 + 64
