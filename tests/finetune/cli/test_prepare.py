"""rag finetune prepare: what it writes is what the older scripts and `datasets` read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

import rag.cli  # noqa: F401  (before what it mounts)
from finetune.cli import app
from finetune.data.dataset import DATA, TokenSet
from finetune.data.formats import GROUNDED
from finetune.data.tokenize import write_jsonl
from ingest.errors import UserError
from ingest.i18n import translate
from rag.chatglm.tokenization import open_tokenizer
from tests.finetune.tokenizers import directory
from tests.rag.chatglm.golden import COPY

DATA_FILES = Path(__file__).parents[2] / "data/alpaca"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Folders with a tokenizer and the config.json that tells the generation."""
    folder = tmp_path_factory.mktemp("models")
    found: dict[int, str] = {}
    for generation in (1, 2, 3):
        place = directory(folder / str(generation), generation)
        config = json.loads((COPY / f"v{generation}/tiny_safetensors/config.json").read_text("utf-8"))
        size = {} if generation == 1 else {"padded_vocab_size": 65024}
        (place / "config.json").write_text(json.dumps(config | size), "utf-8")
        found[generation] = str(place)
    return found


def run(*words: object) -> str:
    """What the command prints; raises what it raises."""
    done = CliRunner().invoke(app, ["prepare", *map(str, words)], catch_exceptions=True)
    if isinstance(done.exception, UserError):
        raise done.exception
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.stdout


def covered(records: list[dict[str, Any]]) -> bytes:
    """What cover_alpaca2jsonl.py writes of alpaca records."""
    lines: list[str] = []
    for record in records:
        context = f"Instruction: {record['instruction']}\n"
        if record.get("input"):
            context += f"Input: {record['input']}\n"
        lines.append(json.dumps({"context": context + "Answer: ", "target": record["output"]}))
    return "".join(line + "\n" for line in lines).encode("ascii")


def column(folder: Path, name: str) -> list[Any]:
    with pa.memory_map(str(folder / DATA)) as file:
        return pa.ipc.open_stream(file).read_all()[name].to_pylist()


def test_the_tutorials_jsonl_byte_for_byte(tmp_path: Path) -> None:
    source, target = DATA_FILES / "alpaca_zh.json", tmp_path / "new/alpaca.jsonl"
    records = json.loads(source.read_text("utf-8"))
    # The tutorial's own spelling, and ours.
    assert "12 rows of 12 examples" in run("--data_path", source, "--save_path", target)
    assert target.read_bytes() == covered(records)
    with pytest.raises(UserError, match="is there already"):
        run(source, "--jsonl", target)
    run(source, "--jsonl", target, "--overwrite")
    assert target.read_bytes() == covered(records)
    assert [path.name for path in target.parent.iterdir()] == ["alpaca.jsonl"]


def test_json_is_escaped_as_in_the_tutorial(tmp_path: Path) -> None:
    records = [
        {"instruction": 'q"\\\n\t\u2028🙂\x7f', "input": "", "output": "  a\r\n"},
        {"instruction": "q", "input": " ", "output": "é中"},
        {"instruction": "q", "output": "</s>"},
    ]
    source = tmp_path / "a.json"
    source.write_text(json.dumps(records), "utf-8")
    write_jsonl([source], tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == covered(records)


def test_the_tutorials_jsonl_is_unchanged_by_a_round_trip(tmp_path: Path) -> None:
    """Also where its contexts have another form."""
    rows = [{"context": "你好", "target": "好"}, {"context": "Instruction: a\nAnswer: ", "target": "b"}]
    source, target = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_jsonl([source], target)
    assert target.read_bytes() == source.read_bytes()


def test_data_is_not_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"instruction": "q", "output": "a"}\n')
    with pytest.raises(UserError, match="is the data itself"):
        run(source, "--jsonl", source, "--overwrite")
    assert source.read_text() == '{"instruction": "q", "output": "a"}\n'


def test_an_input_alone_is_written_as_in_the_tutorial(tmp_path: Path) -> None:
    records = [
        {"instruction": "", "input": "only input", "output": "o"},
        {"instruction": " ", "input": "i", "output": "o"},
    ]
    source, lines, again = (tmp_path / name for name in ("a.json", "a.jsonl", "b.jsonl"))
    source.write_text(json.dumps(records), "utf-8")
    write_jsonl([source], lines)
    assert lines.read_bytes() == covered(records)
    write_jsonl([lines], again)
    assert again.read_bytes() == lines.read_bytes()


def test_rows_of_the_tutorial_are_those_of_its_lines(tmp_path: Path, models: dict[int, str]) -> None:
    """Read from alpaca data as from what cover_alpaca2jsonl.py makes of it."""
    records = [
        {"instruction": "", "input": "only input", "output": "o"},
        {"instruction": "问", "input": "", "output": "答"},
    ]
    source, lines = tmp_path / "a.json", tmp_path / "a.jsonl"
    source.write_text(json.dumps(records), "utf-8")
    lines.write_bytes(covered(records))
    for generation in (1, 2):
        for data, out in ((source, tmp_path / "1"), (lines, tmp_path / "2")):
            run(data, out, "--max-seq-length", 384, "--model", models[generation], "--overwrite")
        assert column(tmp_path / "1", "input_ids") == column(tmp_path / "2", "input_ids")


def test_a_truncated_file_is_reported(tmp_path: Path, models: dict[int, str]) -> None:
    source, out = DATA_FILES / "messy_truncated.json", tmp_path / "tokens"
    lost = "1 bad row skipped, the file breaks at messy_truncated.json:14, what follows is lost"
    assert f"13 rows of 13 examples, {lost}" in run(source, "--jsonl", tmp_path / "a", "--skip-bad")
    for _ in ("made", "kept"):
        assert lost in run(source, out, "--model", models[3], "--skip-bad", "--overwrite")
    assert TokenSet(out).counts.ended == ("messy_truncated.json:14",)


def test_rows_that_can_not_be_cut_are_left_out_with_skip_bad(tmp_path: Path, models: dict[int, str]) -> None:
    messages = [{"role": "user", "content": "[1] 资料。" * 60}, {"role": "assistant", "content": "答[1]。"}]
    source, out = tmp_path / "a.jsonl", tmp_path / "tokens"
    rows = [{"messages": messages, **dict.fromkeys(GROUNDED, 1)}, {"messages": messages, "gold": 1}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (source, out, "--model", models[3], "--max-length", 64)
    with pytest.raises(UserError, match=r"a\.jsonl:1: longer than max_length, 64,.*--skip-bad"):
        run(*words)
    assert "1 rows of 1 examples, 1 shortened, 1 bad row skipped" in run(*words, "--skip-bad")
    source.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match=r"all rows are bad \(1\)"):
        run(*words, "--skip-bad", "--overwrite")


def test_a_bad_row_leaves_no_file(tmp_path: Path) -> None:
    source, target = DATA_FILES / "messy_bad_fields.json", tmp_path / "a.jsonl"
    with pytest.raises(UserError, match="--skip-bad"):
        run(source, "--jsonl", target)
    assert list(tmp_path.iterdir()) == []
    assert "bad rows skipped" in run(source, "--jsonl", target, "--skip_bad", "true")


def test_prepare_writes_our_rows(tmp_path: Path, models: dict[int, str]) -> None:
    out = tmp_path / "tokens"
    output = run(DATA_FILES / "alpaca_zh.json", out, "--model", models[3])
    assert output == f"{out}: 12 rows of 12 examples\n"
    tokens = TokenSet(out)
    assert len(tokens) == tokens.counts.examples == 12
    assert tokens.is_whole()
    assert column(out, "input_ids")[3] == tokens[3].ids.tolist()
    assert tokens[0].ids[0] == open_tokenizer(Path(models[3])).convert_tokens_to_ids("[gMASK]")


def test_existing_files_stay(tmp_path: Path, models: dict[int, str]) -> None:
    source, out = DATA_FILES / "alpaca_zh.json", tmp_path / "tokens"
    out.mkdir()
    run(source, out, "--model", models[3])  # an empty folder is none
    before = TokenSet(out).digest
    with pytest.raises(UserError, match="is there already"):
        run(source, out, "--model", models[3], "--template", "tutorial")
    assert TokenSet(out).digest == before
    run(source, out, "--model", models[3], "--template", "tutorial", "--overwrite")
    assert TokenSet(out).digest != before
    assert {path.name for path in out.parent.iterdir()} == {"home", "tokens"}
    # What is no part of a set is never lost.
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"also holds mine\.txt"):
        run(source, out, "--model", models[3], "--overwrite")
    assert (out / "mine.txt").read_text() == "mine"
    with pytest.raises(UserError, match="is a file"):
        run("--data-path", source, "--save-path", source, "--model", models[3])


def test_the_tutorials_columns(tmp_path: Path, models: dict[int, str]) -> None:
    """What finetune.py takes: input_ids, and seq_len, which gives its labels."""
    source, lines, out = DATA_FILES / "alpaca_zh.json", tmp_path / "a.jsonl", tmp_path / "tokens"
    write_jsonl([source], lines)
    for generation in (1, 2):
        tokenizer = open_tokenizer(Path(models[generation]))
        run(
            "--jsonl_path", lines, "--save_path", out, "--max_seq_length", 60, "--skip_overlength",
            "False", "--model", models[generation], "--overwrite",
        )  # fmt: skip
        ids, labels, lengths = (column(out, name) for name in ("input_ids", "labels", "seq_len"))
        assert len(ids) == 12
        for line, row, length, learnt in zip(
            lines.read_text().splitlines(), ids, lengths, labels, strict=True
        ):
            context = json.loads(line)["context"]
            if generation == 2:
                context = f"[Round 1]\n\n问：{context}\n\n答："
            prompt = tokenizer.encode(context, truncation=True, max_length=60)
            assert row[:length] == prompt
            assert learnt == [-100] * (length - 1) + row[length - 1 :]
        info = json.loads((out / "dataset_info.json").read_text())
        assert info["features"]["seq_len"] == {"dtype": "int64", "_type": "Value"}
    assert TokenSet(out).counts.shortened > 0
    output = run(
        lines, out, "--max-seq-length", 150, "--skip-overlength",
        "--model", models[2], "--overwrite",
    )  # fmt: skip
    assert "left out" in output
    assert max(len(row) for row in column(out, "input_ids")) <= 150


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the data and then a new folder"),
        ([DATA_FILES / "alpaca_zh.json"], "name the data and then a new folder"),
        ([DATA_FILES / "alpaca_zh.json", "out"], "--model"),
    ],
)
def test_mistakes_are_one_line_each(words: list[object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        run(*words)
    assert "\n" not in str(error.value)
    assert translate(error.value.message, "zh") != str(error.value)


def test_unknown_templates_are_refused(tmp_path: Path, models: dict[int, str]) -> None:
    with pytest.raises(UserError, match="'alpaca'; it is one of chat, tutorial"):
        run(DATA_FILES / "alpaca_zh.json", tmp_path / "t", "--model", models[3], "--template", "alpaca")
