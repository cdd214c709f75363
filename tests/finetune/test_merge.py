"""A merged model is W + scale * BA to the last bit of its precision, or is not there."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from finetune import merge as module
from finetune.export import export
from ingest.errors import UserError
from rag.chatglm.adapter import Adapters, probe_logits
from rag.chatglm.adapter_files import Contract, fingerprint, read_adapter
from rag.chatglm.export import MergeReport
from rag.chatglm.loading import load, save_quantized
from rag.chatglm.weights import IGNORED
from tests.finetune.bases import FUSED, GLM1, NATIVE, base
from tests.rag.chatglm.adapters import ROOT, linears, merged, tensors, write
from tests.rag.chatglm.golden import COPY

KINDS = ["v1", "v2", "v3", "glm4", "glm4-0414"]


def adapter(kind: str, model: Path, folder: Path, **config: Any) -> Path:
    """A random adapter on all linear layers, with the names that tools use on this model."""
    ends = GLM1 if kind == "v1" else FUSED if kind in ("v2", "v3") else NATIVE
    sizes = linears(load(model, quant="none"), upstream=kind in ("v2", "v3"))
    made = tensors(sizes, ends, dora=config.get("use_dora", False))
    return write(folder / "adapter", made, ends, **config)


def merge(model: Path, there: Path, target: Path, **options: Any) -> MergeReport:
    return module.merge(model, read_adapter(there), target, **options)


def stored(directory: Path) -> dict[str, Tensor]:
    """All tensors of a folder."""
    found = {}
    for path in directory.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("v1", {"use_dora": True}),
        ("v2", {}),
        ("v2", {"use_dora": True}),
        ("v3", {"use_rslora": True}),
        ("glm4", {}),
        ("glm4-0414", {"use_dora": True, "use_rslora": True}),
    ],
)
def test_each_weight_is_the_sum_rounded_once(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    model = base(kind, tmp_path)
    there = adapter(kind, model, tmp_path, **config)
    done = merge(model, there, tmp_path / "merged", upstream=kind in ("v1", "v2", "v3"))
    made, after, before = (
        load_file(there / "adapter_model.safetensors"),
        stored(tmp_path / "merged"),
        stored(model),
    )
    changed = 0
    for name, weight in before.items():
        if IGNORED.match(name) or (kind == "v1" and name == "lm_head.weight"):
            continue  # computed here; the embedding's own
        assert after[name].dtype == weight.dtype
        module = name.removesuffix(".weight")
        if f"{ROOT}{module}.lora_A.weight" in made:
            scale = 8 / (2 if config.get("use_rslora") else 4)
            exact = merged(weight, made, module, scale=scale)
            unit = torch.finfo(weight.dtype).eps
            assert ((after[name].float() - exact).abs() <= unit * exact.abs() + 1e-7).all()
            changed += 1
        else:
            assert torch.equal(after[name], weight)
    assert changed == len([key for key in made if "lora_A" in key])
    assert done.lost < (1e-6 if kind.startswith("glm4") else 5e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_answers_as_base_and_adapter(tmp_path: Path, kind: str) -> None:
    model = base(kind, tmp_path)
    there = adapter(kind, model, tmp_path)
    merge(model, there, tmp_path / "merged", dtype=torch.float32)
    together = load(model, quant="none", dtype=torch.float32)
    adapters = Adapters(together)
    before = probe_logits(together)
    adapters.attach(read_adapter(there), "it")
    adapters.activate("it")
    wanted, after = probe_logits(together), probe_logits(load(tmp_path / "merged", quant="none"))
    assert (after - wanted).norm() < 1e-5 * wanted.norm()
    assert (after - before).norm() > 1e-2 * wanted.norm()


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
        {"target_modules": "all-linear"},
        {"target_modules": ["lm_head", "down_proj"]},
    ],
)
def test_the_merged_weights_equal_pefts(tmp_path: Path, options: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    model = base("glm4", tmp_path)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": list(NATIVE)} | options
    theirs: Any = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(0)
    trained: Any = get_peft_model(theirs, LoraConfig(init_lora_weights=False, **settings)).eval()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    trained.peft_config["default"].init_lora_weights = True
    trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merge(model, tmp_path / "adapter", tmp_path / "merged")
    wanted: Mapping[str, Tensor] = trained.merge_and_unload().state_dict()
    found = stored(tmp_path / "merged")
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.allclose(found[name], weight, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("kind", KINDS[:4])
def test_both_layouts_hold_one_model(tmp_path: Path, kind: str) -> None:
    model = base(kind, tmp_path)
    there = adapter(kind, model, tmp_path)
    merge(model, there, tmp_path / "native")
    merge(model, there, tmp_path / "upstream", upstream=True)
    names = set(stored(tmp_path / "upstream"))
    if kind in ("v2", "v3"):
        assert names == {name for name in stored(model) if not IGNORED.match(name)}
        config = json.loads((tmp_path / "upstream" / "config.json").read_text("utf-8"))
        published = json.loads((model / "config.json").read_text("utf-8"))
        keys = {"ffn_hidden_size", "kv_channels", "multi_query_group_num", "padded_vocab_size"}
        assert {key: config[key] for key in keys} == {key: published[key] for key in keys}
    first, second = (load(tmp_path / layout, quant="none") for layout in ("native", "upstream"))
    assert torch.equal(probe_logits(first), probe_logits(second))


def test_transformers_alone_loads_a_merged_glm4(tmp_path: Path) -> None:
    model = base("glm4", tmp_path)
    merge(model, adapter("glm4", model, tmp_path), tmp_path / "merged")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ours = load(tmp_path / "merged", quant="none")
    assert torch.allclose(probe_logits(theirs), probe_logits(ours), atol=1e-5)


def test_weights_in_several_bin_files_and_other_files_beside_them(tmp_path: Path) -> None:
    model, held = tmp_path / "bin", stored(COPY / "v2" / "tiny_safetensors")
    model.mkdir()
    shutil.copy(COPY / "v2" / "tiny_safetensors" / "config.json", model)
    names = sorted(held)
    files = {"a.bin": names[::2], "b.bin": names[1::2]}
    for file, part in files.items():
        torch.save({name: held[name] for name in part}, model / file)
    table = {name: file for file, part in files.items() for name in part}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    for name in ("tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        (model / name).write_text("{}", "utf-8")
    (model / "MODEL_LICENSE").write_text("terms", "utf-8")
    (model / "modeling_chatglm.py").write_text("code", "utf-8")
    there = adapter("v2", model, tmp_path)
    merge(model, there, tmp_path / "one")
    merge(COPY / "v2" / "tiny_safetensors", there, tmp_path / "other")
    assert (tmp_path / "one" / "MODEL_LICENSE").read_text("utf-8") == "terms"
    found = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"tokenizer.model", "tokenizer_config.json", "generation_config.json"} < found
    assert "modeling_chatglm.py" not in found
    one, other = stored(tmp_path / "one"), stored(tmp_path / "other")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_the_tutorials_adapter_is_merged_with_a_note_about_its_prompt(tmp_path: Path) -> None:
    model = base("v1", tmp_path)
    made = tensors(linears(load(model, quant="none")), ["query_key_value"], rank=8)
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    defect = {key.replace(".weight", ".default.weight"): value for key, value in made.items()}
    torch.save(defect, old / "adapter_model.bin")
    write(new, made, ["query_key_value"], r=8, lora_alpha=32)
    read = read_adapter(old)
    assert read.contract.template == "tutorial"
    assert "lora_alpha 32 as in the tutorial" in read.notes[0]
    done = merge(model, old, tmp_path / "one")
    assert done.layers == len(made) // 2
    merge(model, new, tmp_path / "other")
    one, other = stored(tmp_path / "one"), stored(tmp_path / "other")
    assert all(torch.equal(one[name], other[name]) for name in other)


def refused(message: str, tmp_path: Path, model: Path, there: Path, **options: Any) -> None:
    """Nothing is left of it."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        merge(model, there, tmp_path / "merged", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_base_is_refused_with_the_reason(tmp_path: Path, bits: int) -> None:
    model = base("v2", tmp_path)
    there = adapter("v2", model, tmp_path)
    save_quantized(model, tmp_path / "packed", bits=bits)
    for codes in (tmp_path / "packed", COPY / "v2" / f"tiny_int{bits}"):
        refused(f"int{bits} codes, whose steps .* rag quantize", tmp_path, codes, there)


def test_a_base_of_bitsandbytes_is_refused(tmp_path: Path) -> None:
    model = base("glm4", tmp_path)
    there = adapter("glm4", model, tmp_path)
    path = model / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps(config), "utf-8")
    refused("holds bitsandbytes codes", tmp_path, model, there)


def test_prefixes_are_refused_with_the_reason(tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    prefix.mkdir()
    state = {"transformer.prefix_encoder.embedding.weight": torch.ones(4, 8)}
    torch.save(state, prefix / "pytorch_model.bin")
    refused("P-Tuning prefix: keys and values", tmp_path, base("v2", tmp_path), prefix)


def test_adapters_of_other_models_are_refused(tmp_path: Path) -> None:
    model = base("v2", tmp_path)
    there = adapter("v2", model, tmp_path)
    Contract(3).write(there)
    refused("generation 3, this model is of generation 2", tmp_path, model, there)
    Contract(2, base="0" * 32).write(there)
    refused("was trained on the model 0000", tmp_path, model, there)
    Contract(2, base=fingerprint(load(model, quant="none"))).write(there)
    merge(model, there, tmp_path / "merged")
    with pytest.raises(UserError, match="exists already"):
        merge(model, there, tmp_path / "merged")


def test_glm4_0414_has_no_upstream_layout(tmp_path: Path) -> None:
    model = base("glm4-0414", tmp_path)
    there = adapter("glm4-0414", model, tmp_path)
    refused("only ever published", tmp_path, model, there, upstream=True)


def test_a_head_that_is_the_embedding_is_refused(tmp_path: Path) -> None:
    model = base("v1", tmp_path)
    made = tensors(linears(load(model, quant="none")), ["lm_head"])
    refused("also too|embedding too", tmp_path, model, write(tmp_path / "it", made, ["lm_head"]))


def test_a_bias_without_a_place_is_refused(tmp_path: Path) -> None:
    model = base("glm4", tmp_path)
    made = tensors(linears(load(model, quant="none")), ["o_proj"])
    made |= {
        key.replace("B.weight", "B.bias"): torch.ones(len(value))
        for key, value in made.items()
        if "lora_B" in key
    }
    there = write(tmp_path / "it", made, ["o_proj"], lora_bias=True)
    refused("adds a bias to model.layers.0.self_attn.o_proj", tmp_path, model, there)


def test_weights_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    model = base("glm4", tmp_path)
    made = tensors(linears(load(model, quant="none")), ["down_proj"])
    large = {key: value * (1000 if "lora" in key else 1) for key, value in made.items()}
    there = write(tmp_path / "it", large, ["down_proj"])
    refused("too large for float16", tmp_path, model, there, dtype=torch.float16)
    assert merge(model, there, tmp_path / "merged", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_merge_that_rounding_takes_away_is_not_kept(tmp_path: Path) -> None:
    model = base("glm4", tmp_path)
    there = adapter("glm4", model, tmp_path)
    weak = {
        key: value * (1e-3 if "lora_B" in key else 1)
        for key, value in load_file(there / "adapter_model.safetensors").items()
    }
    save_file(weak, there / "adapter_model.safetensors")
    message = r"rounding to bfloat16 takes \d+% of what the adapter changes.*--dtype float32"
    refused(message, tmp_path, model, there, dtype=torch.bfloat16)
    assert merge(model, there, tmp_path / "merged").lost < 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_reported_loss_is_that_of_the_written_weights(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    model = base(kind, tmp_path)
    there = adapter(kind, model, tmp_path)
    done = merge(model, there, tmp_path / "rounded", dtype=dtype)
    merge(model, there, tmp_path / "exact", dtype=torch.float32)
    folders = (model, tmp_path / "exact", tmp_path / "rounded")
    before, exact, rounded = (load(f, quant="none", dtype=torch.float32).state_dict() for f in folders)
    names = [name for name in before if not torch.equal(before[name], exact[name])]
    errors, changes = (
        sum(float((a[name] - exact[name]).square().sum()) for name in names) for a in (rounded, before)
    )
    assert done.layers == len(names)
    assert done.lost == pytest.approx((errors / changes) ** 0.5, rel=1e-3)


def test_every_file_has_the_rights_of_a_new_file(tmp_path: Path) -> None:
    model = base("v3", tmp_path)
    merge(model, adapter("v3", model, tmp_path), tmp_path / "merged")
    (tmp_path / "new").touch()
    wanted = (tmp_path / "new").stat().st_mode
    assert {path.stat().st_mode for path in (tmp_path / "merged").iterdir()} == {wanted}


@pytest.mark.parametrize(
    ("kind", "upstream"), [*((kind, False) for kind in KINDS), ("v1", True), ("v3", True), ("glm4", True)]
)
def test_an_adapter_is_merged_once(tmp_path: Path, kind: str, upstream: bool) -> None:
    """Nor is it used beside that model, under whatever names, after another, or from codes."""
    model = base(kind, tmp_path)
    first = adapter(kind, model, tmp_path)
    export(first, model, tmp_path / "native", to="native")
    second = shutil.copytree(first, tmp_path / "second")
    settings = second / "adapter_config.json"
    settings.write_text(settings.read_text("utf-8").replace('"lora_alpha": 8', '"lora_alpha": 4'))
    merge(model, first, tmp_path / "once", upstream=upstream)
    merge(tmp_path / "once", second, tmp_path / "twice", upstream=upstream)
    save_quantized(tmp_path / "twice", tmp_path / "codes", bits=8)
    for held in ("once", "twice"):
        with pytest.raises(UserError, match="adapter is merged into this model already"):
            merge(tmp_path / held, first, tmp_path / "again")
        assert not (tmp_path / "again").exists()
    for held in ("once", "twice", "codes"):
        for same in (first, tmp_path / "native"):
            with pytest.raises(UserError, match="is merged into this model already"):
                Adapters(load(tmp_path / held)).attach(read_adapter(same), "it")
