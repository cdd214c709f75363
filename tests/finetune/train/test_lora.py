"""LoRA by upstream's names and numbers, written so that PEFT and `rag` read the same adapter."""

import inspect
import json
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from finetune.options import LoraOptions
from finetune.train.lora import Lora, native_targets
from ingest.errors import UserError
from rag.chatglm.adapter import Adapters
from rag.chatglm.adapter_files import Contract, read_adapter
from rag.chatglm.configuration import ChatGLM2Config, Glm1Config
from rag.chatglm.loading import empty
from tests.finetune.train.trainings import GENERATIONS, tiny
from tests.rag.chatglm.adapters import IDS, logits

TARGETS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
GLM2 = {
    "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 28,
    "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 65024,
    "attention_bias": True, "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
SIZES = {
    "chatglm-6b": (Glm1Config(), 3_670_016),
    "chatglm2-6b": (ChatGLM2Config(generation=2, **GLM2), 1_949_696),
    "chatglm3-6b": (ChatGLM2Config(generation=3, **GLM2), 1_949_696),
    "glm-4-9b": (
        ChatGLM2Config(generation=4, **GLM2 | {"num_hidden_layers": 40, "vocab_size": 151552}),
        2_785_280,
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_lora_has_as_many_parameters_as_upstream(name: str) -> None:
    """Counted on models of the true shapes, without weights."""
    config, count = SIZES[name]
    with init_empty_weights():
        lora = Lora(empty(config), LoraOptions(rank=8))
    assert sum(value.numel() for value in lora.trainable.values()) == count


def shaken(lora: Lora) -> Lora:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for value in lora.trainable.values():
            value.add_(torch.randn_like(value) * 0.03)
    return lora


def ids(model: PreTrainedModel) -> torch.Tensor:
    if model.config.model_type == "chatglm" and isinstance(model.config, Glm1Config):
        return torch.cat([IDS, torch.tensor([[1001, 1004, 9]])], 1)
    return IDS


@pytest.mark.parametrize(
    "options",
    [LoraOptions(), LoraOptions(rslora=True, targets=TARGETS), LoraOptions(dora=True, rank=3)],
    ids=["lora", "rslora", "dora"],
)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_written_adapter_gives_the_trained_logits(
    generation: int, options: LoraOptions, tmp_path: Path
) -> None:
    """By `rag` on a bare model, and by plain PEFT; with a strength, its share of the change."""
    lora = shaken(Lora(tiny(generation), options))
    lora.model.eval()
    given = ids(lora.base)
    trained, bare = logits(lora.model, given), logits(tiny(generation), given)
    assert (trained - bare).abs().max() > 0.05
    lora.write(tmp_path)
    Contract(generation).write(tmp_path)

    model = tiny(generation)
    adapters = Adapters(model)
    adapters.attach(read_adapter(tmp_path), "a")
    adapters.activate("a")
    assert torch.allclose(logits(model, given), trained, atol=1e-4)

    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # see finetune.train.lora
        again = PeftModel.from_pretrained(tiny(generation), tmp_path).eval()
    assert torch.allclose(logits(again, given), trained, atol=1e-5)


def test_the_same_parameters_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shaken(Lora(tiny(2), LoraOptions(), seed=5)).write(tmp_path / name)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_only_settings_that_say_something_are_written(tmp_path: Path) -> None:
    """Older versions of PEFT refuse fields that they do not know."""
    Lora(tiny(2), LoraOptions()).write(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    assert {"r", "lora_alpha", "target_modules", "peft_type"} <= written.keys()
    known = {*inspect.signature(LoraConfig).parameters, "peft_type"}
    assert written.keys() <= known
    assert not written.keys() & {
        "exclude_modules",
        "ensure_weight_tying",
        "peft_version",
        "use_dora",
        "lora_bias",
    }


def test_strength_is_written_as_alpha(tmp_path: Path) -> None:
    lora = shaken(Lora(tiny(3), LoraOptions()))
    lora.model.eval()
    lora.scale(0.5)
    halved = logits(lora.model)
    lora.write(tmp_path, strength=0.5)
    Contract(3).write(tmp_path)
    model = tiny(3)
    adapters = Adapters(model)
    adapters.attach(read_adapter(tmp_path), "a")
    adapters.activate("a")
    assert torch.allclose(logits(model), halved, atol=1e-4)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_releasing_restores_the_model(generation: int) -> None:
    given = ids(tiny(generation))
    lora = shaken(Lora(tiny(generation), LoraOptions()))
    assert torch.equal(logits(lora.release(), given), logits(tiny(generation), given))


def test_queries_keys_and_values_share_a_if_upstream_has_one_matrix() -> None:
    attention = Lora(tiny(3), LoraOptions()).base.model.layers[0].self_attn
    first, *others = (
        getattr(attention, name).lora_A["default"].weight for name in ("q_proj", "k_proj", "v_proj")
    )
    assert all(first is other for other in others)
    apart = Lora(tiny(3), LoraOptions(targets=("q_proj", "k_proj"))).base.model.layers[0].self_attn
    assert apart.q_proj.lora_A["default"].weight is not apart.k_proj.lora_A["default"].weight


def test_targets_by_either_name() -> None:
    assert native_targets(tiny(1), TARGETS) == list(TARGETS)
    assert native_targets(tiny(2), TARGETS) == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj",
    ]  # fmt: skip
    assert native_targets(tiny(4), ("q_proj", "v_proj")) == ["q_proj", "v_proj"]


@pytest.mark.parametrize("target", ["q_proj", "nonsense", ""])
def test_an_unknown_target_is_refused_with_the_known_ones(target: str) -> None:
    with pytest.raises(UserError, match="query_key_value") as caught:
        Lora(tiny(1), LoraOptions(targets=(target,)))
    assert target in str(caught.value)


def test_a_quantized_model_can_be_trained(tmp_path: Path) -> None:
    """int8 and int4 made here, and published ones: gradients reach A and B, the codes stay."""
    for quant in ("int8", "int4"):
        model = tiny(3, quant=quant, kernels=False)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        lora = shaken(Lora(model, LoraOptions(targets=TARGETS, dropout=0.0)))
        lora.model(IDS, labels=IDS).loss.backward()
        assert all(value.grad is not None and bool(value.grad.any()) for value in lora.trainable.values())
        after = lora.release().state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
