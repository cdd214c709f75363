"""Prefixes of P-Tuning v2 compute what the original code computes, on every generation."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Glm4Config, Glm4ForCausalLM, PreTrainedModel

from ingest.errors import UserError
from rag.chatglm.adapter import Adapters, PrefixEncoder, set_prefix
from rag.chatglm.adapter_files import Contract, read_adapter
from rag.chatglm.configuration import CACHE
from rag.chatglm.loading import load
from tests.rag.chatglm.adapters import logits
from tests.rag.chatglm.golden import COPY, SETS, arrays, largest_difference

SINGLE = {"v1": "gmask_ctx", "v2": "medium"}
BATCH = {"v1": "batch_gmask", "v2": "batch"}
CASES = [
    (root, version)
    for root in SETS
    for version in ("v1", "v2")
    if (root / version / "tiny_safetensors").is_dir()
]
cases = pytest.mark.parametrize(("root", "version"), CASES)
kinds = pytest.mark.parametrize("kind", ["noproj", "proj"])


@pytest.fixture
def model(root: Path, version: str) -> PreTrainedModel:
    return load(root / version / "tiny_safetensors", quant="none", dtype=torch.float32)


def checkpoint(directory: Path, golden: dict[str, Tensor], kind: str) -> Path:
    """The prefix as upstream saves it."""
    start = f"{kind}.weight."
    tensors = {k.removeprefix(start): v for k, v in golden.items() if k.startswith(start)}
    torch.save(tensors, directory / "pytorch_model.bin")
    config = {"pre_seq_len": int(golden["pre_seq_len"]), "prefix_projection": kind == "proj"}
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    return directory


def activated(model: PreTrainedModel, directory: Path) -> Adapters:
    adapters = Adapters(model)
    adapters.attach(read_adapter(directory), "it")
    adapters.activate("it")
    return adapters


@cases
@kinds
def test_logits_are_the_originals(
    model: PreTrainedModel, root: Path, version: str, kind: str, tmp_path: Path
) -> None:
    golden = arrays(root / version / "prefix_golden.npz")
    single = f"{kind}.{SINGLE[version]}"
    before = logits(model, golden[f"{single}.input_ids"])
    adapters = activated(model, checkpoint(tmp_path, golden, kind))
    during = logits(model, golden[f"{single}.input_ids"])
    assert largest_difference(during, golden[f"{single}.logits"]) < 1e-3
    adapters.activate(None)
    assert torch.equal(logits(model, golden[f"{single}.input_ids"]), before)


@cases
@kinds
def test_padded_batches_and_generation_are_the_originals(
    model: PreTrainedModel, root: Path, version: str, kind: str, tmp_path: Path
) -> None:
    golden = arrays(root / version / "prefix_golden.npz")
    activated(model, checkpoint(tmp_path, golden, kind))
    ids, places = (golden[f"{kind}.{BATCH[version]}.{name}"] for name in ("input_ids", "position_ids"))
    valid = ids != model.config.pad_token_id
    with torch.no_grad():
        computed = model(ids, valid.long(), position_ids=places, use_cache=False).logits
    expected = golden[f"{kind}.{BATCH[version]}.logits"]
    assert (computed - expected)[valid].abs().max() < 1e-3
    written = golden[f"{kind}.{BATCH[version]}.generate"]
    out = model.generate(ids, attention_mask=valid.long(), max_new_tokens=12, do_sample=False)
    assert torch.equal(out[:, : written.shape[1]], written)


@pytest.mark.parametrize(("root", "version"), CASES[:1])
def test_the_cache_changes_nothing(model: PreTrainedModel, root: Path, version: str, tmp_path: Path) -> None:
    from transformers import DynamicCache

    golden = arrays(root / version / "prefix_golden.npz")
    activated(model, checkpoint(tmp_path, golden, "noproj"))
    ids = golden[f"noproj.{SINGLE[version]}.input_ids"]
    whole = logits(model, ids)
    positions = model.positions(ids) if version == "v1" else torch.arange(ids.shape[1])[None]
    cache, parts = DynamicCache(), []
    for step in (slice(0, 9), slice(9, 10), slice(10, None)):
        with torch.no_grad():
            given = {CACHE: cache, "use_cache": True, "position_ids": positions[..., step]}
            parts.append(model(ids[:, step], **given).logits)
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-4


def test_transformers_own_glm_takes_prefixes_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Glm4Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=48, vocab_size=512, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    model = Glm4ForCausalLM(config).eval()
    weight = torch.randn(3, 2 * 2 * 2 * 8)
    torch.save({"transformer.prefix_encoder.embedding.weight": weight}, tmp_path / "pytorch_model.bin")
    adapters = activated(model, tmp_path)
    assert adapters.contracts["it"].generation == 4


def test_a_trained_prefix_gets_gradients() -> None:
    model = load(COPY / "v2" / "tiny_safetensors", quant="none", dtype=torch.float32)
    encoder = PrefixEncoder(model.config, 3, projection=True)
    set_prefix(model, encoder)
    model(torch.tensor([[5, 6, 7]]), use_cache=False).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize(("root", "version"), CASES[:1])
def test_wrong_prefixes_are_refused(model: PreTrainedModel, root: Path, version: str, tmp_path: Path) -> None:
    golden = arrays(root / version / "prefix_golden.npz")
    checkpoint(tmp_path, golden, "noproj")
    path = tmp_path / "pytorch_model.bin"
    name = "transformer.prefix_encoder.embedding.weight"
    weight = golden[f"noproj.weight.{name}"]

    def refused(changed: Tensor, message: str) -> None:
        torch.save({name: changed}, path)
        with pytest.raises(UserError, match=message):
            Adapters(model).attach(read_adapter(tmp_path), "it")

    refused(weight[:, :-8].clone(), "holds a prefix of shapes")
    refused(weight * float("nan"), "NaN")
    refused(weight[:-1].clone(), "pre_seq_len 5, but the prefix has 4")
    torch.save({name: weight}, path)
    Contract({"v1": 2, "v2": 1}[version]).write(tmp_path)
    with pytest.raises(UserError, match="use the adapter with its own model"):
        Adapters(model).attach(read_adapter(tmp_path), "it")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="damaged"):
        read_adapter(tmp_path)
