"""An exported adapter is the same change of the model under other names, and comes back as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from finetune.export import export
from ingest.errors import UserError
from rag.chatglm.adapter import Adapters, probe_logits
from rag.chatglm.adapter_files import Contract, read_adapter
from rag.chatglm.loading import empty, load, read_model_config
from rag.chatglm.lora import layer_factors
from tests.finetune.bases import FUSED, GLM1, NATIVE, base
from tests.rag.chatglm.adapters import ROOT, linears, tensors, write

FILE = "adapter_model.safetensors"
QKV = ("q_proj", "k_proj", "v_proj")


def native(model: Path, folder: Path, *, shared: bool, ends: Any = NATIVE, **config: Any) -> Path:
    """A random adapter with transformers' names; where `shared`, q, k and v of a layer have one A."""
    made = tensors(linears(load(model, quant="none")), ends, dora=config.get("use_dora", False))
    if shared:
        for key in made:
            if key.endswith(("k_proj.lora_A.weight", "v_proj.lora_A.weight")):
                made[key] = made[key.replace("k_proj", "q_proj").replace("v_proj", "q_proj")]
    made = {key: value.clone() for key, value in made.items()}
    return write(folder / "native", made, ends, **config)


def changes(adapter: Path, model: Path) -> dict[str, Tensor]:
    """What each layer's weight is added, and DoRA's magnitudes."""
    read = read_adapter(adapter)
    assert read.config
    parts = layer_factors(empty(read_model_config(model)), read.modules, read.config)
    made = {name: part.b @ part.a for name, part in parts}
    made |= {f"{name}.m": part.magnitude for name, part in parts if part.magnitude is not None}
    return made | {f"{name}.bias": part.bias for name, part in parts if part.bias is not None}


def answered(model: Any, adapter: Path) -> Tensor:
    adapters = Adapters(model)
    adapters.attach(read_adapter(adapter), "it")
    adapters.activate("it")
    during = probe_logits(model)
    adapters.activate(None)
    return during


def equal(one: Path, other: Path) -> bool:
    first, second = load_file(one / FILE), load_file(other / FILE)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def settings(adapter: Path) -> dict[str, Any]:
    return json.loads((adapter / "adapter_config.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("kind", "shared", "config"),
    [
        ("v2", True, {}),
        ("v2", False, {"use_rslora": True}),
        ("v3", True, {"use_dora": True}),
        ("v3", False, {"lora_alpha": 5}),
        ("glm4", True, {"use_rslora": True, "lora_alpha": 0.5}),
        ("glm4", False, {"use_dora": True}),
    ],
)
def test_fusing_and_splitting_are_inverse(
    tmp_path: Path, kind: str, shared: bool, config: dict[str, Any]
) -> None:
    model = base(kind, tmp_path)
    there = native(model, tmp_path, shared=shared, **config)
    export(there, model, tmp_path / "upstream", to="upstream")
    names = {key.split(".lora_")[0] for key in load_file(tmp_path / "upstream" / FILE)}
    assert all(name.startswith(f"{ROOT}transformer.encoder.layers.") for name in names)
    assert set(settings(tmp_path / "upstream")["target_modules"]) == {
        name.rpartition(".")[2] for name in FUSED
    }
    wanted, found = changes(there, model), changes(tmp_path / "upstream", model)
    assert wanted.keys() == found.keys()
    for name, change in wanted.items():
        assert (found[name] - change).norm() <= 1e-6 * change.norm()
    export(tmp_path / "upstream", model, tmp_path / "back", to="native")
    assert equal(there, tmp_path / "back")
    before, after = settings(there), settings(tmp_path / "back")
    assert set(after["target_modules"]) == set(before["target_modules"])
    assert (after["r"], after["lora_alpha"]) == (before["r"], before["lora_alpha"])
    assert not after.keys() & {"rank_pattern", "alpha_pattern"}
    loaded = load(model, quant="none", dtype=torch.float32)
    first, second = (answered(loaded, place) for place in (there, tmp_path / "upstream"))
    assert (first - second).norm() < 1e-6 * first.norm()


@pytest.mark.parametrize("config", [{"use_rslora": True}, {"use_dora": True}])
def test_upstreams_names_survive_a_round_trip(tmp_path: Path, config: dict[str, Any]) -> None:
    model = base("v2", tmp_path)
    sizes = linears(load(model, quant="none"), upstream=True)
    made = tensors(sizes, FUSED, dora=config.get("use_dora", False))
    there = write(tmp_path / "fused", made, FUSED, **config)
    export(there, model, tmp_path / "native", to="native")
    export(tmp_path / "native", model, tmp_path / "back", to="upstream")
    assert equal(there, tmp_path / "back")
    assert settings(tmp_path / "native")["target_modules"] == sorted(NATIVE)
    loaded = load(model, quant="none", dtype=torch.float32)
    first, second = (answered(loaded, place) for place in (there, tmp_path / "native"))
    assert torch.equal(first, second)


@pytest.mark.parametrize("shared", [True, False])
def test_parts_of_a_fused_layer_and_of_the_layers(tmp_path: Path, shared: bool) -> None:
    """q and v of the last layer, another rank and scale in v: targets and patterns tell it all."""
    model = base("v3", tmp_path)
    sizes = {name: s for name, s in linears(load(model, quant="none")).items() if ".2." in name}
    made = tensors(sizes, ["q_proj", "v_proj"])
    options: dict[str, Any] = {"layers_to_transform": [2], "alpha_pattern": {"v_proj": 24}}
    if shared:
        key = f"{ROOT}model.layers.2.self_attn.v_proj.lora_A.weight"
        made[key] = made[key.replace("v_proj", "q_proj")].clone()
        del options["alpha_pattern"]
    there = write(tmp_path / "native", made, ["q_proj", "v_proj"], **options)
    export(there, model, tmp_path / "upstream", to="upstream")
    written = settings(tmp_path / "upstream")
    assert written["target_modules"] == ["transformer.encoder.layers.2.self_attention.query_key_value"]
    assert (written["r"], written["lora_alpha"]) == ((4, 8) if shared else (8, 48))
    wanted, found = changes(there, model), changes(tmp_path / "upstream", model)
    nothing = found.pop("model.layers.2.self_attn.k_proj")
    assert not nothing.any()
    for name, change in wanted.items():
        assert (found[name] - change).norm() < 1e-6 * change.norm()
    export(tmp_path / "upstream", model, tmp_path / "back", to="native")
    back = changes(tmp_path / "back", model)
    assert back.keys() == wanted.keys()
    assert all((back[name] - wanted[name]).norm() < 1e-6 * wanted[name].norm() for name in wanted)
    assert equal(there, tmp_path / "back") == shared  # else v's B has taken up its other scale


def test_ranks_that_differ_between_layers_become_patterns(tmp_path: Path) -> None:
    model = base("glm4", tmp_path)
    made = tensors(linears(load(model, quant="none")), NATIVE)
    name = f"{ROOT}model.layers.1.mlp.down_proj"
    made[f"{name}.lora_A.weight"] = made[f"{name}.lora_A.weight"][:2].clone()
    made[f"{name}.lora_B.weight"] = made[f"{name}.lora_B.weight"][:, :2].clone()
    pattern = {"rank_pattern": {r"layers\.1\.mlp\.down_proj": 2}}
    there = write(tmp_path / "native", made, NATIVE, **pattern)
    export(there, model, tmp_path / "upstream", to="upstream")
    written = settings(tmp_path / "upstream")
    layer = "transformer.encoder.layers.1.mlp.dense_4h_to_h"
    assert written["rank_pattern"] == {"query_key_value": 12, layer: 2}
    assert written["alpha_pattern"] == {"query_key_value": 24}
    wanted, found = changes(there, model), changes(tmp_path / "upstream", model)
    assert all((found[n] - wanted[n]).norm() < 1e-6 * wanted[n].norm() for n in wanted)


def test_a_bias_of_b_is_fused_with_its_rows(tmp_path: Path) -> None:
    model = base("v2", tmp_path)
    there = native(model, tmp_path, shared=False, ends=["q_proj", "v_proj"], lora_bias=True)
    made = load_file(there / FILE)
    for key in [key for key in made if "lora_B" in key]:
        made[key.replace("B.weight", "B.bias")] = torch.randn(len(made[key]))
    write(there, made, ["q_proj", "v_proj"], lora_bias=True)
    export(there, model, tmp_path / "upstream", to="upstream")
    wanted, found = changes(there, model), changes(tmp_path / "upstream", model)
    assert all((found[n] - wanted[n]).norm() <= 1e-6 * wanted[n].norm() for n in wanted)
    export(tmp_path / "upstream", model, tmp_path / "back", to="native")
    assert equal(there, tmp_path / "back")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(("kind", "dora"), [("v1", False), ("v2", False), ("v3", True)])
def test_plain_peft_loads_the_native_form(tmp_path: Path, kind: str, dora: bool) -> None:
    from peft import PeftModel

    import rag.chatglm  # noqa: F401  (registers the models)

    model = base(kind, tmp_path)
    ends = GLM1 if kind == "v1" else FUSED
    sizes = linears(load(model, quant="none"), upstream=kind != "v1")
    there = write(tmp_path / "it", tensors(sizes, ends, dora=dora), ends, use_dora=dora)
    export(there, model, tmp_path / "native", to="native")
    wanted = answered(load(model, quant="none", dtype=torch.float32), there)
    theirs: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = probe_logits(PeftModel.from_pretrained(theirs, str(tmp_path / "native")).eval())
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


class Upstream(nn.Module):
    """The linear layers of upstream's code of ChatGLM2, under its names."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        for name, tensor in load_file(checkpoint / "model.safetensors").items():
            *path, leaf, kind = name.split(".")
            if kind == "weight" and tensor.dim() == 2 and "embedding" not in name:
                place: nn.Module = self
                for part in path:
                    if not hasattr(place, part):
                        place.add_module(part, nn.Module())
                    place = getattr(place, part)
                place.add_module(leaf, nn.Linear(tensor.shape[1], tensor.shape[0], bias=False))


@pytest.mark.parametrize(("shared", "rslora"), [(True, False), (False, True)])
def test_plain_peft_loads_upstreams_form_on_upstreams_modules(
    tmp_path: Path, shared: bool, rslora: bool
) -> None:
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    model = base("v2", tmp_path)
    there = native(model, tmp_path, shared=shared, use_rslora=rslora)
    export(there, model, tmp_path / "upstream", to="upstream")
    code: Any = Upstream(model)
    peft_config: Any = LoraConfig.from_pretrained(str(tmp_path / "upstream"))
    code = inject_adapter_in_model(peft_config, code)
    held = load_peft_weights(str(tmp_path / "upstream"), device="cpu")
    held = {name.removeprefix(ROOT): value for name, value in held.items()}
    left: Any = set_peft_model_state_dict(code, held)
    assert left.unexpected_keys == []
    assert [name for name in left.missing_keys if "lora" in name] == []
    wanted = changes(there, model)
    for layer in range(2):
        parts = [wanted[f"model.layers.{layer}.self_attn.{end}"] for end in QKV]
        fused = code.get_submodule(f"transformer.encoder.layers.{layer}.self_attention.query_key_value")
        found = fused.get_delta_weight("default")
        assert (found - torch.cat(parts)).norm() < 1e-6 * found.norm()


@pytest.mark.parametrize("to", ["upstream", "native"])
def test_the_tutorials_adapter_becomes_one_that_peft_loads(tmp_path: Path, to: Any) -> None:
    model = base("v1", tmp_path)
    made = tensors(linears(load(model, quant="none")), ["query_key_value"], rank=8)
    old = tmp_path / "checkpoint-1000"
    old.mkdir()
    defect = {key.replace(".weight", ".default.weight"): value for key, value in made.items()}
    torch.save(defect, old / "adapter_model.bin")
    modules, notes = export(old, model, tmp_path / "it", to=to)
    assert (modules, len(notes)) == (2, 1)
    assert load_file(tmp_path / "it" / FILE).keys() == made.keys()
    written = settings(tmp_path / "it")
    assert (written["r"], written["lora_alpha"], written["target_modules"]) == (8, 32, ["query_key_value"])
    assert read_adapter(tmp_path / "it").contract == Contract(1, "tutorial")


def test_contract_record_and_licence_travel_and_bytes_repeat(tmp_path: Path) -> None:
    model = base("v2", tmp_path)
    there = native(model, tmp_path, shared=False)
    contract = Contract(2, "tutorial", (5,), "0" * 32)
    contract.write(there)
    for name in ("training.json", "LICENSE", "README.md"):
        (there / name).write_text(name, "utf-8")
    for place in ("one", "other"):
        export(there, model, tmp_path / place, to="upstream")
    assert Contract.read(tmp_path / "one") == contract
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert {"training.json", "LICENSE", "README.md"} < files.keys()
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}


def test_adapters_without_another_form_are_refused(tmp_path: Path) -> None:
    model = base("v2", tmp_path)
    there = native(model, tmp_path, shared=False, ends=["q_proj", "v_proj"], use_dora=True)
    with pytest.raises(UserError, match="none for 1 of its 3 parts"):
        export(there, model, tmp_path / "out", to="upstream")
    later = base("glm4-0414", tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="use --to native"):
        export(native(later, tmp_path / "b", shared=True), later, tmp_path / "out", to="upstream")
    prefix = tmp_path / "prefix"
    prefix.mkdir()
    state = {"transformer.prefix_encoder.embedding.weight": torch.ones(4, 8)}
    torch.save(state, prefix / "pytorch_model.bin")
    with pytest.raises(UserError, match="which names no modules"):
        export(prefix, model, tmp_path / "out", to="upstream")
    Contract(3).write(there)
    with pytest.raises(UserError, match="generation 3, this model is of generation 2"):
        export(there, model, tmp_path / "out", to="native")
    Contract(2).write(there)
    with pytest.raises(UserError, match="exists already"):
        export(there, model, tmp_path / "b", to="native")
    assert not (tmp_path / "out").exists()
