"""Two processes learn what one does, and one adapter comes out."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.train.log import read
from tests.rag.chatglm.adapters import IDS, logits

ROOT = Path(__file__).parents[3]
COMMAND = [
    "-m", "rag", "finetune", "train", "--device", "cpu", "--max_steps", "6", "--logging_steps", "1",
    "--save_steps", "3", "--eval_steps", "3", "--lora-dropout", "0", "--learning_rate", "1e-2",
    "--max_length", "120",
]  # fmt: skip


def train(folder: Path, model: Path, data: Path, *options: str, devices: int) -> Path:
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    launched: list[str] = []
    if devices > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launched = ["-m", "torch.distributed.run", "--nproc-per-node", str(devices)]
        launched += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    out = folder / f"of-{devices}"
    done = subprocess.run(
        [
            sys.executable, *launched, *COMMAND, str(data), "--model", str(model), "--out", str(out),
            *options,
        ],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("read back") == 1  # one of them speaks
    return out


def test_two_processes_have_the_loss_of_one(tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.json"
    text = "甲厂的编号是{}。"
    rows = [{"instruction": f"{n}号？", "output": text.format(n * 7)} for n in range(40)]
    data.write_text(json.dumps(rows), "utf-8")
    one = train(tmp_path, tiny, data, "--batch-size", "4", devices=1)
    two = train(tmp_path, tiny, data, "--batch-size", "2", devices=2)
    columns, others = read(one / "loss.csv"), read(two / "loss.csv")
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
