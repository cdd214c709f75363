"""A training learns, reports, resumes to the same bytes, and stops if going on makes no sense."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig

from finetune.options import LoraOptions, PrefixOptions
from finetune.train.batches import pack
from finetune.train.checkpoint import (
    LOG_FILE,
    LOG_PICTURE,
    check_resumable,
    checkpoints,
    delete_training,
    identity,
    is_training,
    read_log,
)
from finetune.train.loop import StepReport, Training
from finetune.train.loss import summed_loss
from finetune.train.setup import RECORD, finish
from ingest.errors import UserError
from rag.chatglm.modeling_chatglm import ChatGLM2ForCausalLM
from tests.finetune.train.trainings import GOLDEN, METHODS, SHORT, pairs, result_files, rows, tiny, training

CASES = [(1, "lora", False), (1, "prefix", True), (2, "rslora", True), (2, "projected", False)]
CASES += [(3, "lora", True), (3, "dora", False), (4, "lora", False), (4, "prefix", False)]
"""Generation, method, and whether layers are computed again."""


@pytest.mark.parametrize(("generation", "method", "again"), CASES)
def test_a_resumed_training_ends_in_the_same_bytes(
    generation: int, method: str, again: bool, tmp_path: Path
) -> None:
    """Stopped at a checkpoint and behind it: adapter, optimiser and log are those of one run."""
    options = replace(SHORT, method=METHODS[method], gradient_checkpointing=again)
    whole = tmp_path / "whole"
    reports = list(training(whole, tiny(generation), options).run())
    assert [report.step for report in reports] == [3, 6, 9, 12]
    assert "dev_loss" in reports[-1].losses
    for stop in (1, 2):  # within the reports after steps 3 and 6: at checkpoints 0 (none) and 4
        part = tmp_path / f"part{stop}"
        run = training(part, tiny(generation), options).run()
        list(islice(run, stop))
        del run
        list(training(part, tiny(generation), options).run(resume=True))
        assert result_files(part) == result_files(whole)


def test_a_training_on_pairs_prefers_the_better_answers_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    options = replace(SHORT, objective="orpo", orpo_beta=1.0, max_steps=24)
    sets = {"train": pairs(tiny(3), 20), "dev": pairs(tiny(3), 6)}
    made = training(tmp_path / "whole", tiny(3), options, **sets)
    [batch] = pack(sets["dev"], 10_000)

    def margin() -> float:
        """The mean of the odds' term, which is 0 if every better answer is certain to be better."""
        made.tuned.model.eval()
        with torch.no_grad():
            both, sft = (float(summed_loss(made.tuned.model, batch, odds)) for odds in (1.0, 0.0))
        made.tuned.model.train()
        return (both - sft) / len(batch.rejected)

    before = margin()
    list(made.run())
    assert margin() < before / 2
    part = tmp_path / "part"
    list(islice(training(part, tiny(3), options, **sets).run(), 3))
    list(training(part, tiny(3), options, **sets).run(resume=True))
    assert result_files(part) == result_files(tmp_path / "whole")
    with pytest.raises(UserError, match="--objective"):
        list(training(part, tiny(3), replace(options, objective="sft"), **sets).run(resume=True))


def test_the_loss_falls_and_is_reported(tmp_path: Path) -> None:
    options = replace(SHORT, max_steps=60, logging_steps=10, save_steps=60, eval_steps=30)
    known = rows(tiny(3), 20)
    made = training(tmp_path, tiny(3), options, train=known, dev=known)
    reports = list(made.run())
    losses = [report.loss for report in reports]
    assert losses[-1] < losses[0] / 2
    assert reports[-1].left == 0
    assert all(report.speed > 0 for report in reports)
    columns = read_log(tmp_path / LOG_FILE)
    assert [step for step, _ in columns["loss"]] == list(range(10, 61, 10))
    assert [step for step, _ in columns["dev_loss"]] == [0, 30, 60]
    assert columns["dev_loss"][-1][1] < columns["dev_loss"][0][1]
    finished = finish(made, {"base": "tiny"})
    assert finished.apart < 1e-5
    assert (tmp_path / LOG_PICTURE).read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / RECORD).read_text("utf-8"))
    assert record["steps"] == 60
    assert record["options"]["learning_rate"] == 1e-2
    assert any((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(("generation", "method", "again"), CASES)
def test_the_written_adapter_answers_as_trained(
    generation: int, method: str, again: bool, tmp_path: Path
) -> None:
    """`finish` compares logits; a checkpoint is an adapter too."""
    from rag.chatglm.adapter import Adapters, probe_logits
    from rag.chatglm.adapter_files import read_adapter

    made = training(
        tmp_path, tiny(generation), replace(SHORT, method=METHODS[method], gradient_checkpointing=again)
    )
    list(made.run())
    assert finish(made, {}).apart < 1e-4
    model = tiny(generation)
    adapters = Adapters(model)
    answers = []
    for folder in (tmp_path, tmp_path / "checkpoint-12"):
        adapters.attach(read_adapter(folder), str(folder))
        adapters.activate(str(folder))
        answers.append(probe_logits(model))
    assert torch.equal(*answers)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("generation", [1, 3])
def test_half_precision_trains(generation: int, dtype: Any, tmp_path: Path) -> None:
    options = replace(SHORT, dtype=dtype, max_steps=30, save_steps=10)
    model = tiny(generation, dtype=getattr(torch, dtype))
    made = training(tmp_path, model, options)
    reports = list(made.run())
    assert reports[-1].loss < reports[0].loss
    assert all(value.dtype == torch.float32 for value in made.tuned.trainable.values())
    if dtype == "float16":
        scale = json.loads((checkpoints(tmp_path)[-1][1] / "state.json").read_text("utf-8"))["scaler"]
        assert scale["scale"] >= 1
    assert finish(made, {}).apart < 0.05


def test_float16_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    options = replace(SHORT, dtype="float16")
    list(training(tmp_path / "a", tiny(3, dtype=torch.float16), options).run())
    run = training(tmp_path / "b", tiny(3, dtype=torch.float16), options).run()
    list(islice(run, 2))
    del run
    list(training(tmp_path / "b", tiny(3, dtype=torch.float16), options).run(resume=True))
    assert result_files(tmp_path / "a") == result_files(tmp_path / "b")


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_a_quantized_base_trains(quant: str, tmp_path: Path) -> None:
    model = tiny(3, quant=quant, kernels=False)
    made = training(tmp_path, model, replace(SHORT, max_steps=30))
    reports = list(made.run())
    assert reports[-1].loss < reports[0].loss
    finish(made, {})


def in_8_bits() -> Any:
    return ChatGLM2ForCausalLM.from_pretrained(
        GOLDEN / "v3" / "tiny_safetensors",
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        dtype=torch.float32,
        device_map={"": "cpu"},
    )


@pytest.mark.parametrize("model", [in_8_bits, lambda: tiny(3, quant="nf4", kernels=False)])
def test_a_bitsandbytes_base_trains(model: Callable[[], Any], tmp_path: Path) -> None:
    """(On the CPU; on CUDA it is the same call.)"""
    made = training(tmp_path, model().eval(), replace(SHORT, max_steps=30))
    reports = list(made.run())
    assert reports[-1].loss < reports[0].loss
    finish(made, {})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 5e-3}, r"--learning-rate = 0\.01, now it is 0\.005"),
        ({"method": LoraOptions(rank=4)}, "--lora-rank = 8, now it is 4"),
        ({"method": PrefixOptions(4)}, "the method = 'LoraOptions'"),
        ({"max_steps": 20}, "--max-steps"),
        ({"pack_length": 90}, "--pack-length"),
        ({"seed": 1}, "--seed"),
    ],
)
def test_resuming_with_other_options_is_refused(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """Before the model is loaded, too."""
    list(training(tmp_path, tiny(3), SHORT).run())
    before = result_files(tmp_path)
    made = training(tmp_path, tiny(3), replace(SHORT, **changed))
    with pytest.raises(UserError, match=message):
        check_resumable(tmp_path, identity(made.sets.digests, made.options, made.accelerator))
    with pytest.raises(UserError, match=message):
        list(made.run(resume=True))
    assert result_files(tmp_path) == before


def test_resuming_keeps_the_number_of_threads(tmp_path: Path) -> None:
    """On which the last bits of sums depend."""
    run = training(tmp_path, tiny(3), SHORT).run()
    list(islice(run, 2))
    del run
    torch.set_num_threads(2)
    list(training(tmp_path, tiny(3), SHORT).run(resume=True))
    assert torch.get_num_threads() == 1


def test_resuming_with_other_data_or_another_base_is_refused(tmp_path: Path) -> None:
    list(training(tmp_path, tiny(3), SHORT).run())
    other = rows(tiny(3), 30, seed=9)
    with pytest.raises(UserError, match=r"the data \(train\) changed"):
        list(training(tmp_path, tiny(3), SHORT, train=other).run(resume=True))
    with pytest.raises(UserError, match="the base = "):
        list(training(tmp_path, tiny(2), SHORT).run(resume=True))


def test_save_steps_may_change_on_resume(tmp_path: Path) -> None:
    run = training(tmp_path, tiny(3), SHORT).run()
    list(islice(run, 2))
    del run
    options = replace(SHORT, save_steps=6, save_total_limit=1)
    list(training(tmp_path, tiny(3), options).run(resume=True))
    assert [step for step, _ in checkpoints(tmp_path)] == [12]


def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_usable(tmp_path: Path) -> None:
    list(training(tmp_path / "a", tiny(3), SHORT).run())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (_, older), (_, newest) = checkpoints(tmp_path / "b")
    for name in ("training.safetensors", "state.json"):
        whole = (newest / name).read_bytes()
        (newest / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=f"{newest.name}.*{name}|{name}.*{newest.name}"):
            list(training(tmp_path / "b", tiny(3), SHORT).run(resume=True))
        (newest / name).write_bytes(whole)
    shutil.rmtree(newest)
    list(training(tmp_path / "b", tiny(3), SHORT).run(resume=True))
    assert result_files(tmp_path / "a") == result_files(tmp_path / "b")
    assert older.name == "checkpoint-8"


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow over 30 kB, as on a disk that is nearly full."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_on_a_full_disk_the_last_checkpoint_survives(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    list(training(whole, tiny(3), SHORT).run())
    run = training(part, tiny(3), SHORT).run()
    list(islice(run, 2))  # behind checkpoint 4
    request.getfixturevalue("small_disk")
    with pytest.raises(UserError, match="checkpoint-4") as caught:
        list(run)
    assert "--resume" in str(caught.value)
    assert [path.name for path in part.iterdir() if "checkpoint" in path.name] == ["checkpoint-4"]


def test_a_training_resumes_after_a_full_disk(tmp_path: Path) -> None:
    """(The limit of the test before is gone here.)"""
    whole, part = tmp_path / "whole", tmp_path / "part"
    list(training(whole, tiny(3), SHORT).run())
    run = training(part, tiny(3), SHORT).run()
    list(islice(run, 2))
    del run
    (part / ".checkpoint-8.partial").mkdir()
    (part / ".checkpoint-8.partial" / "state.json").write_text("{")
    list(training(part, tiny(3), SHORT).run(resume=True))
    assert result_files(whole) == result_files(part)


def training_that_forgets(out: Path, **changes: Any) -> Training:
    """What is learnt contradicts the general set, which the model knows by then."""
    model = tiny(3)
    general = rows(model, 12, seed=5)
    options = replace(SHORT, max_steps=40, eval_steps=4, learning_rate=2e-2, **changes)
    return training(out, model, options, general=general, general_dev=general)


def test_the_forgetting_budget_stops_a_training(tmp_path: Path) -> None:
    [*_, last] = training(
        tmp_path / "free",
        tiny(3),
        replace(SHORT, max_steps=40, eval_steps=4, learning_rate=0.2, max_grad_norm=0.0),
        general_dev=rows(tiny(3), 12, seed=5),
    ).run()
    assert not last.stopped
    assert last.step == 40
    [*_, last] = training(
        tmp_path / "bound",
        tiny(3),
        replace(
            SHORT, max_steps=40, eval_steps=4, learning_rate=0.2, max_grad_norm=0.0, forgetting_budget=0.02
        ),
        general_dev=rows(tiny(3), 12, seed=5),
    ).run()
    assert "budget" in last.stopped
    assert last.step < 40
    assert checkpoints(tmp_path / "bound")[-1][0] == last.step


def test_a_training_stopped_by_the_budget_stays_stopped_and_is_weakened(tmp_path: Path) -> None:
    options = replace(SHORT, max_steps=40, eval_steps=4, learning_rate=0.2, forgetting_budget=0.02)
    general = rows(tiny(3), 12, seed=5)

    def made() -> Training:
        return training(tmp_path, tiny(3), options, general_dev=general)

    first = made()
    list(first.run())
    assert first.state.stopped
    again = made()
    assert list(again.run(resume=True)) == []
    assert (again.state.step, again.state.stopped) == (first.state.step, first.state.stopped)
    finished = finish(again, {})
    assert finished.strength < 1
    limit = finished.losses["general_loss_before"] * 1.02
    assert finished.losses["general_loss"] <= limit


def test_mixing_keeps_the_general_loss_down(tmp_path: Path) -> None:
    def final(mix: float) -> StepReport:
        [*_, last] = training_that_forgets(tmp_path / str(mix), mix=mix).run()
        return last

    without, mixed = final(0.0), final(0.5)
    assert mixed.losses["general_loss"] < without.losses["general_loss"]


def test_strength_auto_minimizes_the_dev_loss(tmp_path: Path) -> None:
    """Rows to learn that say the opposite of the dev set: the less, the better."""
    options = replace(SHORT, max_steps=30, learning_rate=5e-2, strength=None)
    made = training(tmp_path / "far", tiny(3), options, dev=rows(tiny(3), 12, seed=7))
    list(made.run())
    assert finish(made, {}).strength < 1
    known = rows(tiny(3), 12, seed=3)
    near = training(tmp_path / "near", tiny(3), replace(options, learning_rate=5e-3), train=known, dev=known)
    list(near.run())
    assert finish(near, {}).strength == 1


def test_a_prefix_has_no_strength() -> None:
    for strength in (None, 0.5):
        with pytest.raises(UserError, match="strength"):
            replace(SHORT, method=PrefixOptions(5), strength=strength)


def test_a_missing_log_is_an_error(tmp_path: Path) -> None:
    list(training(tmp_path, tiny(3), SHORT).run())
    (tmp_path / LOG_FILE).unlink()
    with pytest.raises(UserError, match=r"loss\.csv has 0 bytes"):
        list(training(tmp_path, tiny(3), replace(SHORT, save_steps=2)).run(resume=True))


def test_deleting_a_training_leaves_other_files(tmp_path: Path) -> None:
    made = training(tmp_path, tiny(3), SHORT)
    list(made.run())
    finish(made, {})
    (tmp_path / "mine.txt").write_text("kept")
    assert is_training(tmp_path)
    delete_training(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert not is_training(tmp_path)


def test_an_adapter_that_reads_back_differently_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = training(tmp_path, tiny(3), SHORT)
    list(made.run())
    monkeypatch.setattr("finetune.train.setup.APART", -1.0)
    with pytest.raises(UserError, match="read back"):
        finish(made, {})
    assert not (tmp_path / "adapter_model.safetensors").exists()
    assert not list(tmp_path.glob(".adapter*"))


def test_prefixes_have_upstream_s_files(tmp_path: Path) -> None:
    made = training(tmp_path, tiny(2), replace(SHORT, method=PrefixOptions(5)))
    list(made.run())
    finish(made, {})
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert list(state) == ["transformer.prefix_encoder.embedding.weight"]
    assert json.loads((tmp_path / "config.json").read_text())["pre_seq_len"] == 5


def test_a_training_killed_twenty_times_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """By SIGKILL at random moments, also within a save."""
    arguments = ["-m", "tests.finetune.train.kill_training", str(tmp_path), "7", "20"]
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, *arguments], cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    kills, saving = (int(word) for word in done.stdout.split() if word.isdigit())
    assert kills == 20
    assert saving >= 1
