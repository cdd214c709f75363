"""LoRA adapters compute what merging them would; adapters without effect or of other models are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM, PreTrainedModel

from ingest.errors import UserError
from rag.chatglm.adapter import Adapters
from rag.chatglm.adapter_files import Contract, fingerprint, read_adapter
from rag.chatglm.configuration import Glm1Config
from rag.chatglm.loading import load
from rag.chatglm.lora import dense_weight
from rag.chatglm.modeling_chatglm import Glm1ForCausalLM
from tests.rag.chatglm.adapters import IDS, ROOT, linears, logits, merged, tensors, write
from tests.rag.chatglm.golden import COPY

TINY = COPY / "v2" / "tiny_safetensors"
FUSED = ("query_key_value", "self_attention.dense", "dense_h_to_4h", "dense_4h_to_h")
NATIVE = ("q_proj", "v_proj", "down_proj")


@pytest.fixture
def model() -> PreTrainedModel:
    return load(TINY, quant="none", dtype=torch.float32)


@pytest.fixture
def lora(model: PreTrainedModel, tmp_path: Path) -> Path:
    """A good adapter with upstream's names."""
    factors = tensors(linears(model, upstream=True), FUSED)
    return write(tmp_path / "lora", factors, FUSED)


def glm1() -> tuple[PreTrainedModel, torch.Tensor]:
    """A tiny ChatGLM-6B and a prompt for it."""
    torch.manual_seed(0)
    config = Glm1Config(
        hidden_size=32, inner_hidden_size=80, num_layers=2, num_attention_heads=2, vocab_size=512,
        max_sequence_length=64, bos_token_id=504, eos_token_id=505, mask_token_id=500,
        gmask_token_id=501,
    )  # fmt: skip
    model = Glm1ForCausalLM(config).eval()
    return model, torch.tensor([[9, 80, 333, 501, 504, 17, 60]])


def answered(model: Any, directory: Path, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Logits with the adapter; it leaves no trace in the model's own."""
    adapters = Adapters(model)
    before = logits(model, ids)
    adapters.attach(read_adapter(directory), "it")
    assert torch.equal(logits(model, ids), before)
    adapters.activate("it")
    during = logits(model, ids)
    adapters.activate(None)
    assert torch.equal(logits(model, ids), before)
    return during


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_fused_modules_made_elsewhere_are_exact(
    model: PreTrainedModel, tmp_path: Path, dora: bool, rslora: bool
) -> None:
    factors = tensors(linears(model, upstream=True), FUSED, dora=dora)
    there = write(tmp_path / "lora", factors, FUSED, use_dora=dora, use_rslora=rslora)
    state = load_file(TINY / "model.safetensors")
    state = {name: tensor.float() for name, tensor in state.items()}
    for key in (key for key in factors if key.endswith("lora_A.weight")):
        name = key.removeprefix(ROOT).removesuffix(".lora_A.weight")
        scale = 8 / 4**0.5 if rslora else 8 / 4
        state[f"{name}.weight"] = merged(state[f"{name}.weight"], factors, name, scale=scale)
    (tmp_path / "config.json").write_bytes((TINY / "config.json").read_bytes())
    save_file(state, tmp_path / "model.safetensors")
    by_hand = load(tmp_path, quant="none", dtype=torch.float32)
    difference = answered(model, there) - logits(by_hand)
    assert difference.abs().max() < 1e-5 * logits(by_hand).abs().max()


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_of_chatglm_6b_are_exact(tmp_path: Path, dora: bool) -> None:
    model, ids = glm1()
    ends = ("query_key_value", "dense")
    factors = tensors(linears(model), ends, dora=dora)
    there = write(tmp_path, factors, ends, use_dora=dora)
    during = answered(model, there, ids)
    weights = model.state_dict()
    for name in linears(model):
        if name.endswith(ends):
            weights[f"{name}.weight"].copy_(merged(weights[f"{name}.weight"], factors, name, scale=2))
    assert (during - logits(model, ids)).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore:.*tensor.s. have invalid shape")  # of a bias: false alarm
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"lora_bias": True, "target_modules": ["q_proj", "v_proj"]},
        {"rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"layers_to_transform": [1]},
        {"target_modules": r".*\.1\.mlp\.(gate_up|down)_proj"},
        {"exclude_modules": ["model.layers.0.self_attn.v_proj"]},
        {"target_modules": "all-linear", "lora_alpha": 3},
    ],
)
def test_what_peft_saves_is_what_peft_computes(tmp_path: Path, options: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = GlmConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=48, vocab_size=512, attention_bias=True, pad_token_id=0,
        eos_token_id=2,
    )  # fmt: skip
    model = GlmForCausalLM(config).eval()
    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(NATIVE)} | options
    trained = get_peft_model(model, LoraConfig(init_lora_weights=False, **settings)).eval()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    theirs = logits(trained)
    # PEFT refuses to save what it did not initialise as its config says.
    trained.peft_config["default"].init_lora_weights = True
    trained.save_pretrained(tmp_path)
    difference = answered(trained.unload(), tmp_path) - theirs
    assert difference.abs().max() < 1e-5


def test_several_adapters_take_turns(model: PreTrainedModel, lora: Path, tmp_path: Path) -> None:
    sizes = linears(model)
    second = write(tmp_path / "second", tensors(sizes, NATIVE), NATIVE)
    adapters = Adapters(model)
    alone = logits(model)
    seen = {}
    for name, there in (("a", lora), ("b", second)):
        adapters.attach(read_adapter(there), name)
        adapters.activate(name)
        seen[name] = logits(model)
    assert not torch.equal(seen["a"], seen["b"])
    for name in ("a", "b", "a"):
        adapters.activate(name)
        assert torch.equal(logits(model), seen[name])
    adapters.activate(None)
    assert torch.equal(logits(model), alone)
    with pytest.raises(UserError, match="no adapter named 'c' is attached; attached: a, b"):
        adapters.activate("c")
    with pytest.raises(UserError, match="'b' is attached already"):
        adapters.attach(read_adapter(second), "b")


@pytest.mark.parametrize(("quant", "band"), [("none", 1e-5), (None, 0.05)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_adds_to_the_product_of_codes(
    tmp_path: Path, bits: int, dora: bool, quant: Any, band: float
) -> None:
    base = load(COPY / "v2" / f"tiny_int{bits}", quant=quant)  # computing in floats, or packed
    factors = tensors(linears(base, upstream=True), FUSED, dora=dora)
    during = answered(base, write(tmp_path, factors, FUSED, use_dora=dora))
    float_base = load(TINY, quant="none", dtype=torch.float32)
    with torch.no_grad():
        for name, module in base.named_modules():
            if hasattr(module, "out_features"):
                float_base.get_submodule(name).weight.copy_(module.weight)
    exact = answered(float_base, tmp_path)
    assert (during - exact).norm() < band * exact.norm()


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_works_on_a_base_of_bitsandbytes(tmp_path: Path, dora: bool) -> None:
    torch.manual_seed(0)
    config = GlmConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, intermediate_size=64, vocab_size=512, attention_bias=True, pad_token_id=0,
        eos_token_id=2,
    )  # fmt: skip
    GlmForCausalLM(config).save_pretrained(tmp_path / "base")
    base = load(tmp_path / "base", quant="nf4", dtype=torch.float32, device="cpu")
    float_base = load(tmp_path / "base", quant="none", dtype=torch.float32)
    factors = tensors(linears(base, upstream=True), FUSED, dora=dora)
    there = write(tmp_path / "lora", factors, FUSED, use_dora=dora)
    with torch.no_grad():
        for name, module in base.named_modules():
            if hasattr(module, "out_features"):
                float_base.get_submodule(name).weight.copy_(dense_weight(module))
    exact = answered(float_base, there)
    assert (answered(base, there) - exact).norm() < 0.05 * exact.norm()
    assert fingerprint(base) == fingerprint(float_base)


def test_eight_bit_weights_of_bitsandbytes_are_read() -> None:
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    weight = torch.randn(32, 64)
    layer = Linear8bitLt(64, 32, has_fp16_weights=False)
    layer.weight = Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False).to("cpu")
    for _ in range(2):  # a call moves the scales from the weight to the state
        assert (dense_weight(layer) - weight).abs().max() < weight.abs().max() / 200
        layer(torch.randn(1, 64))


def test_fused_modules_are_split_for_transformers_own_classes(tmp_path: Path) -> None:
    """GLM-4-9B's adapters, made on its remote code, on the checkpoints of the native classes."""
    torch.manual_seed(0)
    config = Glm4Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, intermediate_size=48, vocab_size=512, attention_bias=True, pad_token_id=0,
        eos_token_id=2,
    )  # fmt: skip
    model = Glm4ForCausalLM(config).eval()
    fused = tensors(linears(model, upstream=True), ["query_key_value"])
    split = {}
    for key, tensor in fused.items():
        layer = "model" + key.removeprefix(f"{ROOT}transformer.encoder").partition(".self")[0]
        leaf = key[-len("lora_A.weight") :]
        parts = [tensor] * 3 if "lora_A" in leaf else tensor.split([32, 16, 16])
        for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
            split[f"{ROOT}{layer}.self_attn.{name}.{leaf}"] = part.clone()
    there = write(tmp_path / "fused", fused, ["query_key_value"])
    here = write(tmp_path / "split", split, ["q_proj", "k_proj", "v_proj"])
    assert torch.equal(answered(model, there), answered(model, here))


def test_the_fingerprint_is_the_same_in_any_precision(model: PreTrainedModel) -> None:
    known = fingerprint(model)
    for dtype in (torch.float16, torch.bfloat16):
        assert fingerprint(load(TINY, quant="none", dtype=dtype)) == known
    for bits in (4, 8):
        assert fingerprint(load(COPY / "v2" / f"tiny_int{bits}", quant="none")) == known
    assert fingerprint(load(COPY / "v3" / "tiny_safetensors", quant="none")) != known


def test_the_contract_travels_with_the_adapter(model: PreTrainedModel, lora: Path) -> None:
    assert read_adapter(lora).contract == Contract(None)  # v2's and v3's tensors look alike
    assert Adapters(model).attach(read_adapter(lora), "it").generation == 2
    contract = Contract(2, "tutorial", (5, 7), fingerprint(model))
    contract.write(lora)
    assert read_adapter(lora).contract == contract
    assert Adapters(model).attach(read_adapter(lora), "it") == contract


def test_another_model_is_refused(model: PreTrainedModel, lora: Path) -> None:
    Contract(2, base="0" * 32).write(lora)
    with pytest.raises(UserError, match=f"trained on the model {'0' * 32}, this one is"):
        Adapters(model).attach(read_adapter(lora), "it")
    Contract(3).write(lora)
    with pytest.raises(UserError, match=r"generation 3, this model is of generation 2"):
        Adapters(model).attach(read_adapter(lora), "it")
    (lora / "contract.json").unlink()
    rewrite(lora, base_model_name_or_path="/data/chatglm3-6b")
    with pytest.raises(UserError, match="generation 3"):
        Adapters(model).attach(read_adapter(lora), "it")
    factors = tensors(linears(glm1()[0]), ["query_key_value"])
    write(lora, factors, ["query_key_value"])
    with pytest.raises(UserError, match="generation 1, this model is of generation 2"):
        Adapters(model).attach(read_adapter(lora), "it")


def rewrite(directory: Path, **changes: Any) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def retensor(directory: Path, **changes: Any) -> None:
    """Change, or with None remove, the tensors whose key ends so."""
    path = directory / "adapter_model.safetensors"
    factors = load_file(path)
    for end, change in changes.items():
        for key in [key for key in factors if key.endswith(end.replace("__", "."))]:
            factors[key] = change(factors[key]) if change else factors.pop(key)
            if change is None:
                del factors[key]
    save_file(factors, path)


@pytest.mark.parametrize(
    ("end", "change", "message"),
    [
        ("lora_B__weight", torch.zeros_like, "all of the adapter's B matrices are zero"),
        ("layers__1__mlp__dense_4h_to_h__lora_B__weight", lambda b: b * float("nan"), "NaN"),
        ("layers__0__mlp__dense_4h_to_h__lora_A__weight", None, "holds no lora_A of .*incomplete"),
        ("query_key_value__lora_B__weight", lambda b: b[:-8].clone(), "made for a layer 64"),
        ("dense_4h_to_h__lora_A__weight", lambda a: a[:2].clone(), "A has rank 2 and B 4"),
        ("lora_B__weight", lambda b: b * 1e-30, "changes nothing in this model"),
        ("lora_B__weight", lambda b: b * 1e30, "NaN or infinite"),
    ],
)
def test_harmful_and_idle_tensors_are_refused(
    model: PreTrainedModel, lora: Path, end: str, change: Any, message: str
) -> None:
    retensor(lora, **{end: change})
    before = logits(model)
    with pytest.raises(UserError, match=message):
        Adapters(model).attach(read_adapter(lora), "it")
    assert torch.equal(logits(model), before)


def test_missing_and_additional_layers_are_refused(model: PreTrainedModel, lora: Path) -> None:
    path = lora / "adapter_model.safetensors"
    factors = load_file(path)
    save_file({key: value for key, value in factors.items() if ".layers.1." not in key}, path)
    with pytest.raises(UserError, match=r"lacks transformer\.encoder\.layers\.1\..*\(4 modules"):
        Adapters(model).attach(read_adapter(lora), "it")
    more = {key.replace(".layers.1.", ".layers.2."): t.clone() for key, t in factors.items()}
    save_file(factors | more, path)
    with pytest.raises(UserError, match=r"layers\.2\..*made for another model"):
        Adapters(model).attach(read_adapter(lora), "it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\] is not supported"),
        ({"bias": "all"}, "bias = 'all' is not supported"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"some_new_method": {"x": 1}}, "some_new_method"),
        ({"r": 8}, "adapter_config.json says 8"),
        ({"r": None}, "r, lora_alpha or target_modules"),
        ({"use_dora": True}, "lacks the tensor magnitude"),
    ],
)
def test_unsupported_configs_are_refused(
    model: PreTrainedModel, lora: Path, changes: dict[str, Any], message: str
) -> None:
    rewrite(lora, **changes)
    with pytest.raises(UserError, match=message):
        Adapters(model).attach(read_adapter(lora), "it")


def test_unknown_keys_are_refused_by_name(lora: Path) -> None:
    path = lora / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.lm_head.weight": torch.ones(2, 2)}, path)
    with pytest.raises(UserError, match=r"'base_model\.model\.lm_head\.weight'.* unused"):
        read_adapter(lora)


def test_each_damaged_file_has_its_error(lora: Path) -> None:
    path = lora / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        read_adapter(lora)
    path.unlink()
    torch.save({}, lora / "adapter_model.bin")  # the file of 443 bytes
    with pytest.raises(UserError, match=r"adapter_model\.bin holds no tensors \(\d+ bytes\)"):
        read_adapter(lora)
    (lora / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds no tensors \(0 bytes\)"):
        read_adapter(lora)
    torch.save({"a": torch.nn.Linear(2, 2)}, lora / "adapter_model.bin")
    with pytest.raises(UserError, match="code in it is not run"):
        read_adapter(lora)
    torch.save({"a": torch.ones(99)}, lora / "adapter_model.bin")
    whole = (lora / "adapter_model.bin").read_bytes()
    (lora / "adapter_model.bin").write_bytes(whole[:300])
    with pytest.raises(UserError, match="damaged"):
        read_adapter(lora)


def test_directories_without_an_adapter_are_refused(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        read_adapter(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no adapter .*it holds nothing"):
        read_adapter(tmp_path / "empty")
    with pytest.raises(UserError, match="holds a model, not an adapter"):
        read_adapter(TINY)
    (lora / "adapter_config.json").write_text("{", "utf-8")
    with pytest.raises(UserError, match="is not JSON"):
        read_adapter(lora)
    (lora / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"lacks adapter_config\.json"):
        read_adapter(lora)
    adapter = read_adapter(lora, alpha=8)
    assert adapter.kind == "lora"
    assert adapter.config
    assert (adapter.config.rank, adapter.config.alpha) == (4, 8)


@pytest.mark.parametrize("name", ["adapter_model.bin", "chatglm-lora.pt"])
def test_the_tutorials_checkpoints_are_read(tmp_path: Path, name: str) -> None:
    model, ids = glm1()
    ends = ["query_key_value"]
    factors = tensors(linears(model), ends, rank=8)
    during = answered(model, write(tmp_path / "peft", factors, ends, r=8, lora_alpha=32), ids)
    old = tmp_path / "checkpoint-1000"
    old.mkdir()
    torch.save({k.replace(".weight", ".default.weight"): v for k, v in factors.items()}, old / name)
    adapter = read_adapter(old)
    assert adapter.contract == Contract(1, "tutorial")
    assert "rank 8 by its tensors, lora_alpha 32 as in the tutorial" in adapter.notes[0]
    assert torch.equal(answered(model, old, ids), during)
    assert "lora_alpha 16 as given" in read_adapter(old, alpha=16).notes[0]


def test_broken_contracts_are_refused(lora: Path) -> None:
    for text, message in (
        ("{", "not a contract"),
        ('{"generation": 7}', "generation is 7"),
        ('{"generation": 2, "template": "poem"}', "template 'poem'; this knows chat, tutorial"),
        ('{"generation": 2, "stop_ids": ["x"]}', "stop_ids"),
        ('{"generation": 2, "version": 2}', "not a contract"),
    ):
        (lora / "contract.json").write_text(text, "utf-8")
        with pytest.raises(UserError, match=message):
            read_adapter(lora)
