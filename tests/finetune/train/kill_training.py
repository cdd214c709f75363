"""Trains in children that are killed: `kill_training.py OUT SEED KILLS` prints how often and where.

Run by test_loop.py in a process of its own, whose parent has computed nothing: children begin with
all loaded. Some moments are within a save, which takes a good part of the time here.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from finetune.options import LoraOptions, TrainOptions
from finetune.train.setup import finish
from tests.finetune.train.trainings import result_files, tiny, training

OPTIONS = TrainOptions(
    method=LoraOptions(targets=("query_key_value", "dense_4h_to_h")),
    max_steps=12, learning_rate=1e-2, logging_steps=2, eval_steps=4, save_steps=2, pack_length=80,
)  # fmt: skip


def child(out: Path) -> None:
    """The training as far as it comes."""
    import torch

    torch.set_num_threads(1)
    made = training(out, tiny(3), OPTIONS)
    for _ in made.run(resume=True):
        pass
    finish(made, {})


def begin(out: Path) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(out)
            code = 0
        finally:
            os._exit(code)
    return pid


def main() -> None:
    out, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    began = time.monotonic()
    assert os.waitpid(begin(out / "whole"), 0)[1] == 0
    took = time.monotonic() - began
    dice = random.Random(seed)
    done = kills_done = saving = 0
    while kills_done < kills or done == 0:
        pid = begin(out / "part")
        if kills_done < kills:
            time.sleep(dice.uniform(0.2, 1.0) * took)
            while kills_done % 4 == 3 and not (saving_now(out / "part") or ended(pid)):
                time.sleep(0.0002)  # each fourth kill waits for a save
            os.kill(pid, signal.SIGKILL)  # (of one that has ended: nothing)
        status = os.waitpid(pid, 0)[1]
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            assert result_files(out / "part") == result_files(out / "whole")
            shutil.rmtree(out / "part")
            done += 1
            continue
        kills_done += 1
        done = 0
        saving += saving_now(out / "part")
    sys.stdout.write(f"{kills_done} kills, {saving} within a save\n")


def saving_now(out: Path) -> bool:
    return any(out.glob(".checkpoint-*.partial"))


def ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


if __name__ == "__main__":
    main()
