"""Two processes learn what one does, and one adapter comes out."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from finetune.train.checkpoint import read_log
from tests.commands import rag
from tests.rag.chatglm.adapters import IDS, logits

ROOT = Path(__file__).parents[3]
COMMAND = [
    "finetune", "train", "--device", "cpu", "--max_steps", "6", "--logging_steps", "1",
    "--save_steps", "3", "--eval_steps", "3", "--lora-dropout", "0", "--learning_rate", "1e-2",
    "--max_length", "120",
]  # fmt: skip


def port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def torchrun() -> list[str]:
    return [
        "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-addr", "127.0.0.1", "--master-port", port(),
    ]  # fmt: skip


def accelerate() -> list[str]:
    """By the file that docs/scale.md names; its port may be taken here."""
    file = ROOT / "docs" / "accelerate" / "cpu.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(file)]
    return [*launch, "--main_process_port", port()]


def test_accelerate_reads_the_files_for_it() -> None:
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
    from accelerate.utils import DistributedType

    kinds = {"cpu": "MULTI_GPU", "ddp": "MULTI_GPU", "fsdp": "FSDP"}
    files = {path.stem: path for path in (ROOT / "docs" / "accelerate").glob("*.yaml")}
    assert set(files) == set(kinds)
    for name, path in files.items():
        config = load_config_from_file(str(path))  # unknown names are refused
        assert isinstance(config, ClusterConfig)
        assert config.distributed_type is DistributedType(kinds[name])
        assert config.num_processes == 2
        assert config.main_process_ip == "127.0.0.1"
        assert config.mixed_precision == "no"  # --dtype says it


def train(out: Path, model: Path, data: Path, *options: str, launcher: Sequence[str] = ()) -> None:
    environment = {"XDG_CACHE_HOME": str(out.parent)}
    words = [*COMMAND, str(data), "--model", str(model), "--out", str(out), *options]
    if launcher:
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "rag", *words],
            cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    else:
        done = rag(*words, environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("read back") == 1  # one of them speaks


def test_two_processes_have_the_loss_of_one(tiny: Path, tmp_path: Path) -> None:
    data, one, two = (tmp_path / name for name in ("rows.json", "one", "two"))
    text = "甲厂的编号是{}。"
    rows = [{"instruction": f"{n}号？", "output": text.format(n * 7)} for n in range(40)]
    data.write_text(json.dumps(rows), "utf-8")
    train(one, tiny, data, "--batch-size", "4")
    train(two, tiny, data, "--batch-size", "2", launcher=torchrun())
    columns, others = read_log(one / "loss.csv"), read_log(two / "loss.csv")
    for name in ("loss", "dev_loss", "grad_norm"):
        assert len(columns[name]) >= 3
        for (step, value), (same, other) in zip(columns[name], others[name], strict=True):
            assert step == same
            assert other == pytest.approx(value, rel=1e-5)

    from rag.chatglm.adapter import Adapters
    from rag.chatglm.adapter_files import read_adapter
    from rag.chatglm.loading import load

    model = load(tiny, quant="none", device="cpu")
    adapters = Adapters(model)
    found = []
    for out in (one, two):
        adapters.attach(read_adapter(out), out.name)
        adapters.activate(out.name)
        found.append(logits(model, IDS % 200))
    assert (found[0] - found[1]).abs().max() < 1e-3

    # As if killed behind step 3, and gone on with by the other launcher.
    whole = {path.name: path.read_bytes() for path in two.iterdir() if path.is_file()}
    shutil.rmtree(two / "checkpoint-6")
    train(two, tiny, data, "--batch-size", "2", "--resume", launcher=accelerate())
    assert {path.name: path.read_bytes() for path in two.iterdir() if path.is_file()} == whole
