"""Files of data become the sets of a training: held out, general, prepared beforehand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.data.dataset import DATA
from finetune.data.tokenize import tokenize, write_set
from finetune.options import TrainOptions
from finetune.train.setup import Data, read_sets
from ingest.errors import UserError
from tests.finetune.train.trainings import GOLDEN
from tests.rag.chatglm.vocabularies import published

OPTIONS = TrainOptions(max_length=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ChatGLM3's tokenizer and a config; there are no weights to read."""
    folder = published(tmp_path_factory.mktemp("chatglm3-6b"), 3)
    shutil.copyfile(GOLDEN / "v3" / "tiny_safetensors" / "config.json", folder / "config.json")
    return folder


def data(folder: Path, count: int, name: str = "rows.json") -> Path:
    rows = [{"instruction": f"第{n}个问题", "output": f"答{n * n}"} for n in range(count)]
    (folder / name).write_text(json.dumps(rows), "utf-8")
    return folder / name


def test_the_seed_decides_which_rows_are_held_out(model: Path, tmp_path: Path) -> None:
    given = Data((data(tmp_path, 40),), dev_share=0.25)
    sets = read_sets(given, model, OPTIONS, cache=tmp_path / "cache")
    assert sets.sizes == {"train": 30, "dev": 10, "general": 0, "general_dev": 0}
    assert sets.dev is not None
    seen = {tuple(row.ids) for row in (*sets.train, *sets.dev)}  # type: ignore[misc]
    assert len(seen) == 40
    again = read_sets(given, model, OPTIONS, cache=tmp_path / "cache")
    assert again.digests == sets.digests
    other = read_sets(given, model, replace(OPTIONS, seed=1), cache=tmp_path / "cache")
    assert other.digests["train"] != sets.digests["train"]


def test_with_a_dev_file_all_rows_are_trained_on(model: Path, tmp_path: Path) -> None:
    dev = data(tmp_path, 7, "dev.json")
    sets = read_sets(Data((data(tmp_path, 40),), (dev,)), model, OPTIONS, cache=tmp_path / "cache")
    assert sets.sizes["dev"] == 7
    assert len(sets.train) == 40


def test_general_rows_are_mixed_or_measured_only(model: Path, tmp_path: Path) -> None:
    given = Data((data(tmp_path, 40),), general=(data(tmp_path, 50, "general.json"),))
    measured = read_sets(given, model, OPTIONS, cache=tmp_path / "cache")
    assert measured.general is None
    assert measured.general_dev is not None
    assert len(measured.general_dev) == 50
    mixed = read_sets(given, model, replace(OPTIONS, mix=0.2), cache=tmp_path / "cache")
    assert mixed.general is not None
    assert len(mixed.general) == 45
    assert (mixed.sizes["general"], mixed.sizes["general_dev"]) == (45, 5)


def test_shortened_examples_are_counted(model: Path, tmp_path: Path) -> None:
    rows = [{"instruction": "长" * 300, "output": "短"}, {"instruction": "短", "output": "短"}] * 4
    (tmp_path / "long.json").write_text(json.dumps(rows), "utf-8")
    sets = read_sets(Data((tmp_path / "long.json",), dev_share=0), model, OPTIONS, cache=tmp_path / "cache")
    assert sets.counts["train"].shortened == 4


def test_a_prepared_set_is_for_its_template(model: Path, tmp_path: Path) -> None:
    file = data(tmp_path, 12)
    how = {"generation": 3, "template": "chat", "max_length": 64}
    write_set(tokenize([file], model, cache=tmp_path / "cache", **how), tmp_path / "set")  # type: ignore[arg-type]
    given = Data((tmp_path / "set",), dev_share=0)
    sets = read_sets(given, model, OPTIONS, cache=tmp_path / "cache")
    direct = read_sets(Data((file,), dev_share=0), model, OPTIONS, cache=tmp_path / "cache")
    assert sets.digests == direct.digests
    with pytest.raises(UserError, match=r"prepared for template chat.*template tutorial"):
        read_sets(given, model, replace(OPTIONS, template="tutorial"), cache=tmp_path / "cache")


def test_a_damaged_set_is_refused(model: Path, tmp_path: Path) -> None:
    how = {"generation": 3, "template": "chat", "max_length": 64}
    place = tmp_path / "set"
    write_set(tokenize([data(tmp_path, 12)], model, cache=tmp_path / "cache", **how), place)  # type: ignore[arg-type]
    rows = bytearray((place / DATA).read_bytes())
    rows[len(rows) // 2] ^= 1
    (place / DATA).write_bytes(rows)
    with pytest.raises(UserError, match="not a whole set of tokens; make it again"):
        read_sets(Data((place,), dev_share=0), model, OPTIONS, cache=tmp_path / "cache")


def test_a_prepared_set_is_for_its_tokenizer(model: Path, tmp_path: Path) -> None:
    how = {"generation": 3, "template": "chat", "max_length": 64}
    place, other = tmp_path / "set", tmp_path / "other"
    write_set(tokenize([data(tmp_path, 12)], model, cache=tmp_path / "cache", **how), place)  # type: ignore[arg-type]
    shutil.copytree(model, other)
    given = Data((place,), dev_share=0)
    read_sets(given, other, OPTIONS, cache=tmp_path / "cache")
    with (other / "tokenizer.model").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match=r"prepared for tokenizer \w{16}, this training is for"):
        read_sets(given, other, OPTIONS, cache=tmp_path / "cache")


def test_bad_and_lost_rows_are_counted(model: Path, tmp_path: Path) -> None:
    whole = data(tmp_path, 5).read_text("utf-8")
    (tmp_path / "cut.json").write_text(whole[: whole.rindex("{") + 9], "utf-8")
    given = Data((tmp_path / "cut.json",), dev_share=0, skip_bad=True)
    sets = read_sets(given, model, OPTIONS, cache=tmp_path / "cache")
    assert (sets.counts["train"].bad, sets.counts["train"].ended) == (1, ("cut.json:5",))


def test_too_few_rows_are_an_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 rows are too few to hold 2 of them out"):
        read_sets(Data((data(tmp_path, 2),), dev_share=0.9), model, OPTIONS, cache=tmp_path / "c")


def test_contradictory_options_fail_before_loading(model: Path, tmp_path: Path) -> None:
    given = Data((data(tmp_path, 30),), dev_share=0)
    for options, message in (
        (replace(OPTIONS, forgetting_budget=0.1), "--mix"),
        (replace(OPTIONS, strength=None), "--dev"),
    ):
        with pytest.raises(UserError, match=message):
            read_sets(given, model, options, cache=tmp_path / "c")
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="dev-share"):
            Data((data(tmp_path, 2),), dev_share=share)


def test_only_the_first_rows_are_used(model: Path, tmp_path: Path) -> None:
    given = Data((data(tmp_path, 40),), dev_share=0, most=7)
    sets = read_sets(given, model, OPTIONS, cache=tmp_path / "c")
    whole = read_sets(replace(given, most=0), model, OPTIONS, cache=tmp_path / "c")
    assert [list(row.ids) for row in sets.train] == [list(row.ids) for row in whole.train][:7]  # type: ignore[attr-defined]
