"""A rehearsal measures and leaves nothing."""

from pathlib import Path

from finetune.options import TrainOptions
from finetune.train.preview import Heaviest, forget_peak, peak, rehearse

from .made import tiny, training


def test_a_rehearsal(tmp_path: Path) -> None:
    options = TrainOptions(per_device_train_batch_size=3, max_steps=20, eval_steps=8)
    made = training(tmp_path / "out", tiny(3), options)
    heaviest = Heaviest(made.sets, options)
    found = rehearse(made, heaviest)
    assert found.steps == 20
    assert found.whole > 20 * found.step > 0
    assert abs(found.speed * found.step * 20 / heaviest.tokens - 1) < 1e-9
    assert not list(tmp_path.iterdir())


def test_a_peak_can_be_forgotten() -> None:
    held = bytearray(200 << 20)
    before = peak("cpu")
    del held
    forget_peak()
    after = peak("cpu")
    assert before is None or (after is not None and after < before)
