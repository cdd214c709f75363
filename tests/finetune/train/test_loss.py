"""The loss is upstream's, and no layout of the same rows changes it or its gradients."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.options import LoraOptions, PrefixOptions
from finetune.train.batches import Batch, pack
from finetune.train.lora import Lora, PrefixTuning
from finetune.train.loss import attention_inputs, evaluate, summed_loss
from finetune.types import IGNORED, REJECTED, TokenRow
from rag.chatglm.loading import load
from tests.finetune.memory_rows import MemoryRows
from tests.finetune.train.trainings import GENERATIONS, pairs, rows, tiny
from tests.rag.chatglm.golden import SETS, arrays
from tests.rag.chatglm.models import to_upstream


def of(golden: dict[str, Any], padding: int) -> list[TokenRow]:
    """The rows of the original training example."""
    made = []
    for ids, labels in zip(golden["train.input_ids"], golden["train.labels"], strict=True):
        length = int((ids != padding).sum())
        made.append(TokenRow(*(t[:length].numpy().astype(np.int32) for t in (ids, labels))))
    return made


@pytest.mark.parametrize("generation", [1, 2, 3])
@pytest.mark.parametrize("root", SETS, ids=lambda root: root.parent.name)
def test_the_loss_equals_upstream_s(root: Path, generation: int) -> None:
    golden = arrays(root / f"v{generation}" / "golden.npz")
    measured = json.loads((root / f"v{generation}" / "train.json").read_text("utf-8"))
    model = load(
        root / f"v{generation}" / "tiny_safetensors", quant="none", dtype=torch.float32, device="cpu"
    ).train()
    [batch] = pack(of(golden, 3 if generation == 1 else 0), 100)
    loss = summed_loss(model, batch) / batch.learnt
    assert abs(float(loss.detach()) - measured["loss"]) < 1e-5 * measured["loss"]
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if generation > 1:
        gradients = to_upstream(gradients, model.config)
    assert gradients.keys() == measured["grad_norm"].keys()
    norms = {name: float(gradient.norm()) for name, gradient in gradients.items()}
    assert norms == pytest.approx(measured["grad_norm"], rel=1e-4)
    assert math.hypot(*norms.values()) == pytest.approx(measured["total_grad_norm"], rel=1e-4)
    for name, wanted in golden.items():
        if name.startswith("train.grad."):
            found = gradients[name.removeprefix("train.grad.")]
            assert (found - wanted).norm() < 1e-4 * wanted.norm()


def alone(given: MemoryRows) -> list[Batch]:
    return [batch for row in given for batch in pack([row], 1)]


def adapted(generation: int, method: str, dtype: torch.dtype) -> Any:
    model = tiny(generation, dtype=dtype)
    if dtype == torch.float32:  # numbers of the size that training gives; the golden ones are wild
        with torch.no_grad():
            for name, value in model.named_parameters():
                if ".layers." in name and value.dim() == 2:
                    value.mul_(0.3)
    if method == "prefix":
        found = PrefixTuning(model, PrefixOptions(5), seed=1)
    else:
        found = Lora(model, LoraOptions(dropout=0.0, targets=("query_key_value", "dense_4h_to_h")))
    with torch.no_grad():  # B begins as zero, and A would have no gradient
        for name, value in found.trainable.items():
            value.data = value.data.to(dtype)
            if "lora_B" in name:
                value.normal_(std=0.02)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("method", ["lora", "prefix"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_packed_rows_have_the_loss_and_gradients_of_single_rows(
    generation: int, method: str, dtype: torch.dtype
) -> None:
    tuned = adapted(generation, method, dtype)
    tuned.model.eval()
    given = rows(tuned.base, 9)
    layouts = {"alone": alone(given), "packed": pack(given, 70)}
    assert len(layouts["packed"]) < 4
    losses, gradients = {}, {}
    for name, batches in layouts.items():
        total = sum(summed_loss(tuned.model, batch) for batch in batches)
        assert isinstance(total, torch.Tensor)
        learnt = sum(batch.learnt for batch in batches)
        (total / learnt).backward()
        losses[name] = float(total.detach()) / learnt
        grads = [value.grad for value in tuned.trainable.values()]
        gradients[name] = torch.cat([grad.flatten() for grad in grads if grad is not None])
        for value in tuned.trainable.values():
            value.grad = None
    wanted, exact = gradients["alone"], 1e-6 if dtype == torch.float32 else 1e-12
    assert losses["packed"] == pytest.approx(losses["alone"], rel=exact)
    assert float((gradients["packed"] - wanted).norm() / wanted.norm()) < exact


@pytest.mark.parametrize("method", ["none", "lora"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_packed_samples_do_not_attend_to_each_other(generation: int, method: str) -> None:
    """Other words in one sample: the logits of the others are the same to the last bit."""
    model = tiny(generation) if method == "none" else adapted(generation, method, torch.float32).model.eval()
    given = rows(model, 4, longest=12)
    [batch] = pack(given, 200)

    def logits(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(ids, **attention_inputs(model, batch), use_cache=False).logits

    before = logits(batch.ids)
    for number in range(1, 5):
        here = batch.samples == number
        changed = batch.ids.clone()
        plain = here & (batch.ids < 400)  # not the marks of a prompt
        changed[plain] = (batch.ids[plain] + 17) % 390 + 5
        after = logits(changed)
        assert torch.equal(before[~here], after[~here])
        assert not torch.equal(before[here], after[here])


def test_losses_add_up_over_parts() -> None:
    model = tiny(3).train()
    given = rows(model, 70)
    whole = evaluate(model, given, length=64, step=0)
    parts = [evaluate(model, given, length=64, step=0, part=slice(i, None, 3)) for i in range(3)]
    assert torch.allclose(whole, sum(parts, torch.zeros(2, dtype=torch.float64)), rtol=1e-6)
    assert whole[1] == sum(int((row.labels != IGNORED).sum()) for row in given)
    assert model.training


def orpo(model: Any, given: MemoryRows, beta: float) -> torch.Tensor:
    """ORPO from its definition (Hong et al. 2024, equations 3 to 7), one answer after the other."""
    nll, tokens, ratios = [], 0, []
    for row in given:
        cut = int(np.flatnonzero(row.labels == REJECTED)[0])
        log_p = []
        for part in (slice(0, cut), slice(cut, len(row))):
            [batch] = pack([TokenRow(row.ids[part], np.maximum(row.labels[part], IGNORED))], 1)
            logits = model(batch.ids, **attention_inputs(model, batch), use_cache=False).logits
            token = logits[0, :-1].log_softmax(-1).gather(1, batch.ids[0, 1:, None])[:, 0]
            log_p.append(token[batch.labels[0, 1:] != IGNORED])
        nll.append(-log_p[0].sum())
        tokens += len(log_p[0])
        chosen, rejected = (each.mean().exp() for each in log_p)
        ratio = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
        ratios.append(-(1 / (1 + 1 / ratio)).log())
    return torch.stack(nll).sum() / tokens + beta * torch.stack(ratios).mean()


@pytest.mark.parametrize("length", [1, 60, 1000])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_loss_of_pairs_is_orpo_s(generation: int, length: int) -> None:
    """In float64, with its gradients, however the pairs are packed; rows without a worse answer only add theirs."""
    tuned, beta = adapted(generation, "lora", torch.float64), 0.3
    tuned.model.eval()
    given, values = pairs(tuned.base, 5), list(tuned.trainable.values())
    wanted = orpo(tuned.model, given, beta)
    batches = pack(given, length)
    learnt = sum(batch.learnt for batch in batches)
    assert sum(len(batch.rejected) for batch in batches) == 5
    found = sum(summed_loss(tuned.model, batch, beta * learnt / 5) for batch in batches) / learnt
    assert isinstance(found, torch.Tensor)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-10)
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(each, values)]) for each in (found, wanted)
    ]
    assert (gradients[0] - gradients[1]).norm() < 1e-8 * gradients[1].norm()
    other = rows(tuned.base, 3, seed=5)
    [mixed], [alone] = pack([*given, *other], 1000), pack(other, 1000)
    both, own, sft = (
        float(summed_loss(tuned.model, batch, odds).detach())
        for batch, odds in ((mixed, 2.0), (pack(given, 1000)[0], 2.0), (alone, 0.0))
    )
    assert both == pytest.approx(own + sft, rel=1e-10)
    assert mixed.learnt == learnt + alone.learnt
