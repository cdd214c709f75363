"""Command lines of the tutorial and of THUDM's scripts mean here what they meant there."""

import re
import shlex
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

import rag.cli.app
from finetune.cli.options import IGNORED, NO, USUAL, VALUED, YES, BaseOptions, MethodOptions, normalized
from finetune.options import LoraOptions, PrefixOptions
from ingest.errors import UserError

COMMAND: Any = typer.main.get_command(rag.cli.app.app)
TRAIN: Any = COMMAND.commands["finetune"].commands["train"]
NEEDED = ["--model", "m", "--out", "o"]
# As their READMEs have them, line ends taken out.
TUTORIAL = """--dataset_path data/alpaca --lora_rank 8 --per_device_train_batch_size 6
    --gradient_accumulation_steps 1 --max_steps 52000 --save_steps 1000 --save_total_limit 2
    --learning_rate 1e-4 --fp16 --remove_unused_columns false --logging_steps 50
    --output_dir output"""
THUDM = """--do_train --train_file AdvertiseGen/train.json --validation_file AdvertiseGen/dev.json
    --prompt_column content --response_column summary --overwrite_cache
    --model_name_or_path THUDM/chatglm-6b --output_dir output/adgen-chatglm-6b-pt-128-2e-2
    --overwrite_output_dir --max_source_length 64 --max_target_length 64
    --per_device_train_batch_size 1 --per_device_eval_batch_size 1
    --gradient_accumulation_steps 16 --predict_with_generate --max_steps 3000 --logging_steps 10
    --save_steps 1000 --learning_rate 2e-2 --pre_seq_len 128 --quantization_bit 4"""


def parsed(line: str) -> dict[str, Any]:
    context = TRAIN.make_context("train", shlex.split(line), parent=None)
    return context.params


def test_the_tutorial_s_command() -> None:
    found = parsed(f"{TUTORIAL} --model m")
    assert [str(path) for path in found["data"]] == ["data/alpaca"]
    assert str(found["out_dir"]) == "output"
    wanted = {
        "rank": 8, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 1, "max_steps": 52000, "save_steps": 1000,
        "save_total_limit": 2, "learning_rate": 1e-4, "fp16": True, "logging_steps": 50,
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted


def test_thudm_s_command() -> None:
    found = parsed(THUDM)
    assert found["model"] == "THUDM/chatglm-6b"
    assert (found["prompt"], found["response"]) == ("content", "summary")
    assert (found["max_source_length"], found["max_target_length"]) == (64, 64)
    assert (found["pre_seq_len"], found["quantization_bit"]) == (128, 4)
    assert found["overwrite"]
    assert found["files"] in (None, [], ())
    assert BaseOptions(quantization_bit=4).quantization() == "int4"


def test_thudm_s_evaluation() -> None:
    """What evaluate.sh has beside these is ignored, but for the prefix of an earlier training."""
    found = parsed(shlex.join(NEEDED) + " --do_predict --test_file dev.json --overwrite_cache")
    assert found["files"] in (None, [], ())
    with pytest.raises(UserError, match=r"--ptuning-checkpoint can't be used.*--resume"):
        parsed(shlex.join(NEEDED) + " --ptuning_checkpoint old")


FLAGS = {
    option.opts[0].removeprefix("--"): option
    for option in TRAIN.params
    if getattr(option, "is_flag", False) and option.secondary_opts
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_take_yes_and_no(name: str) -> None:
    field = FLAGS[name].name
    for spelling in (name, name.replace("-", "_")):
        for words in (f"--{spelling}", *(f"--{spelling} {word}" for word in ("True", "yes", "1"))):
            assert parsed(shlex.join(NEEDED) + f" {words}")[field] is True, words
        for words in (*(f"--{spelling} {word}" for word in ("False", "no", "0")), f"--no-{name}"):
            assert parsed(shlex.join(NEEDED) + f" {words}")[field] is False, words
        assert parsed(shlex.join(NEEDED) + f" --{spelling}=false")[field] is False


@pytest.mark.parametrize("command", ["prepare", "train", "domain"])
def test_own_options_are_never_ignored(command: str) -> None:
    options = COMMAND.commands["finetune"].commands[command].params
    own = {name.removeprefix("--"): each for each in options for name in each.opts if name.startswith("--")}
    assert IGNORED.keys().isdisjoint(own)
    for name, option in own.items():
        words = [f"--{name}"] if option.is_flag else [f"--{name}", "x"]
        assert normalized(words, own) == words


@given(st.lists(st.sampled_from([*YES, *NO, "data.json", "--rank", "8", "-x", "--"])))
def test_arguments_that_are_not_flags_stay(words: list[str]) -> None:
    assert normalized(words, {}) == words


@pytest.mark.parametrize("name", IGNORED)
def test_arguments_without_effect_are_accepted_with_a_note(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    value = "x" if name in VALUED else "false"
    for words in ([f"--{name}", value], [f"--{name}={value}"], [f"--{name.replace('-', '_')}", value]):
        assert normalized([*words, "data.json"], {}) == ["data.json"]
        assert name in capsys.readouterr().err
    if name not in VALUED:
        assert normalized([f"--{name}", "data.json"], {}) == ["data.json"]


def test_a_flag_with_another_word_is_an_error() -> None:
    with pytest.raises(UserError, match=r"fp16 is 'maybe'"):
        normalized(["--fp16=maybe"], FLAGS)


@pytest.mark.parametrize(
    ("name", "bit", "in_8", "in_4", "found"),
    [
        (None, None, False, False, "none"), ("nf4", None, False, False, "nf4"),
        (None, 8, False, False, "int8"), (None, None, True, False, "int8"),
        (None, None, False, True, "nf4"), ("int8", 8, True, False, "int8"),
    ],
)  # fmt: skip
def test_quantization_of_the_base(
    name: str | None, bit: int | None, in_8: bool, in_4: bool, found: str
) -> None:
    options = BaseOptions(name, quantization_bit=bit, load_in_8bit=in_8, load_in_4bit=in_4)
    assert options.quantization() == found


def test_the_options_choose_a_prefix_or_lora() -> None:
    dora, prefix = LoraOptions(dora=True), MethodOptions(64, prefix_projection=True)
    assert MethodOptions().method(dora) == dora
    assert prefix.method(LoraOptions()) == PrefixOptions(64, True)
    rates = (prefix.rate, MethodOptions().rate, MethodOptions(64, learning_rate=1.0).rate)
    assert rates == (2e-2, 1e-4, 1.0)
    with pytest.raises(UserError, match="--prefix-projection is P-Tuning's"):
        MethodOptions(prefix_projection=True).method(LoraOptions())
    with pytest.raises(UserError, match="--dora is LoRA's"):
        MethodOptions(64).method(dora)


def test_contradictory_methods_are_refused() -> None:
    with pytest.raises(UserError, match="int4 and int8"):
        BaseOptions("int4", quantization_bit=8).quantization()
    with pytest.raises(UserError, match="need 4 or 8"):
        BaseOptions(quantization_bit=3).quantization()


def test_the_help_shows_twenty_options_first(capsys: pytest.CaptureFixture[str]) -> None:
    names = {option.name for option in TRAIN.params}
    assert len(USUAL) == 20
    assert names > USUAL
    with pytest.raises(typer.Exit):
        parsed("--help")
    first, more = capsys.readouterr().out.split("More options:")
    assert "--lora-rank" in first
    assert "--lora-dropout" in more
    options = first.partition("Options:")[2]
    assert len(re.findall(r"^  --(?!help)", options, re.MULTILINE)) == 20
