"""Folders of models and adapters as people have them: incomplete, mixed, or in the layout of another tool."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ingest.errors import UserError
from rag.chatglm.adapter import Adapters
from rag.chatglm.adapter_files import Contract, read_adapter, write_prefix
from rag.chatglm.configuration import Glm1Config
from rag.chatglm.generator import open_generator
from rag.chatglm.hub import fetch
from rag.chatglm.loading import load, read_model_config, save_quantized
from rag.chatglm.tokenization import open_tokenizer
from tests.rag.chatglm import vocabularies
from tests.rag.chatglm.adapters import linears, logits, tensors, write
from tests.rag.chatglm.models import golden_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1827780615\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return golden_model("v3", tmp_path / "chatglm3-6b")


def configure(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")


def test_the_tokenizer_of_another_model_is_refused_with_both_numbers(model: Path) -> None:
    shutil.copyfile(vocabularies.GOLDEN / "tokenizer.model", model / "tokenizer.model")
    with pytest.raises(UserError, match="64798 words, the model 544"):
        open_generator(model)


@pytest.mark.parametrize(
    "text", ["", "<!DOCTYPE html><title>403</title>", "[1]", '{"a": ', "\udcff", POINTER]
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_small_file_that_cannot_be_read_is_named(model: Path, name: str, text: str) -> None:
    (model / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=rf"{name}.*(download it again|git lfs pull)"):
        open_tokenizer(model)
    if name != "special_tokens_map.json":
        (model / "config.json").write_text("", "utf-8")
        with pytest.raises(UserError, match=r"config\.json.*download it again"):
            read_model_config(model)


@pytest.mark.parametrize(
    ("name", "generation"),
    [
        ("/data/ChatGLM2-Tuning/models/chatglm3-6b", 3),
        ("/data/chatglm3/chatglm2-6b-32k/", 2),
        (r"D:\chatglm2\chatglm3-6b", 3),
        ("THUDM/chatglm2-6b", 2),
    ],
)
def test_only_the_last_folder_of_a_models_name_counts(model: Path, name: str, generation: int) -> None:
    data = json.loads((model / "config.json").read_text("utf-8"))
    data.pop("generation", None)
    assert Glm1Config.from_dict(data | {"_name_or_path": name}).generation == generation


def test_a_name_that_the_tokenizer_contradicts_is_a_question(model: Path) -> None:
    configure(model, _name_or_path="THUDM/chatglm2-6b", generation=None)
    vocabularies.configure(model, {"name_or_path": "THUDM/chatglm3-6b"})
    with pytest.raises(UserError, match='add "generation": 2 or 3'):
        read_model_config(model)
    configure(model, generation=3)
    assert read_model_config(model).generation == 3


@pytest.mark.parametrize("field", ["_attn_implementation_autoset", "gradient_checkpointing", "loss_type"])
def test_fields_of_transformers_itself_are_known(model: Path, field: str) -> None:
    configure(model, **{field: True})
    assert read_model_config(model).generation == 3


def test_pointers_of_git_lfs_beside_whole_shards_are_passed_over(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = logits(load(model))
    weights = load_file(model / "model.safetensors")
    torch.save({name: tensor.clone() for name, tensor in weights.items()}, model / "pytorch_model.bin")
    (model / "model.safetensors").write_text(POINTER, "utf-8")
    assert torch.equal(logits(load(model)), expected)
    assert "pytorch_model.bin is read instead" in caplog.text
    (model / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="git lfs pull"):
        load(model)


def test_float_weights_that_are_called_int4_are_quantised(model: Path, tmp_path: Path) -> None:
    save_quantized(model, tmp_path / "expected", bits=4)
    configure(model, quantization_bit=4)
    save_quantized(model, tmp_path / "int4", bits=4)
    names = ("expected", "int4")
    expected, found = (load_file(next((tmp_path / name).glob("*.safetensors"))) for name in names)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_hubs_cache_folder_is_its_snapshot(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--THUDM--chatglm3-6b"
    (cache / "refs").mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(model, cache / "snapshots" / commit)
    with pytest.raises(UserError, match="2 snapshots"):
        fetch(str(cache), cache=tmp_path)
    (cache / "refs/main").write_text("b" * 40, "utf-8")
    for name in (cache, cache / "snapshots"):
        assert fetch(str(name), cache=tmp_path) == cache / "snapshots" / ("b" * 40)
    assert fetch(str(model), cache=tmp_path) == model


def test_pefts_prefix_is_upstreams(model: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(model)
    config, length = base.config, 5
    width = config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim
    torch.manual_seed(1)
    embeddings = torch.randn(length, width)
    for name in ("upstream", "peft"):
        (tmp_path / name).mkdir()
    write_prefix(tmp_path / "upstream", {"embedding.weight": embeddings})
    save_file({"prompt_embeddings": embeddings}, tmp_path / "peft/adapter_model.safetensors")
    settings = {"peft_type": "PREFIX_TUNING", "base_model_name_or_path": "THUDM/chatglm3-6b"}
    path = tmp_path / "peft/adapter_config.json"
    path.write_text(json.dumps(settings | {"num_virtual_tokens": length}), "utf-8")
    assert read_adapter(tmp_path / "peft").contract == Contract(3)
    adapters, found = Adapters(base), []
    for name in ("upstream", "peft"):
        adapters.attach(read_adapter(tmp_path / name), name)
        adapters.activate(name)
        found.append(logits(base))
    assert torch.equal(*found)
    save_file({"other": embeddings}, tmp_path / "peft/adapter_model.safetensors")
    with pytest.raises(UserError, match="not prompt_embeddings"):
        read_adapter(tmp_path / "peft")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_lora_in_a_file_that_is_named_as_a_models_is_read(model: Path, tmp_path: Path, name: str) -> None:
    ends = ["query_key_value"]
    factors = tensors(linears(AutoModelForCausalLM.from_pretrained(model), upstream=True), ends)
    folder = write(tmp_path / "lora", factors, ends)
    expected = read_adapter(folder).modules
    (folder / "adapter_model.safetensors").unlink()
    if name.endswith(".bin"):
        torch.save(factors, folder / name)
    else:
        save_file(factors, folder / name)
    found = read_adapter(folder).modules
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[module].b, part.b) for module, part in expected.items())


def test_the_checkpoints_in_a_folder_of_a_training_are_named(model: Path, tmp_path: Path) -> None:
    ends = ["query_key_value"]
    factors = tensors(linears(AutoModelForCausalLM.from_pretrained(model), upstream=True), ends)
    (tmp_path / "out").mkdir()
    for step in (10, 20):
        write(tmp_path / f"out/checkpoint-{step}", factors, ends)
    with pytest.raises(UserError, match="checkpoint-10, checkpoint-20; give one of them"):
        read_adapter(tmp_path / "out")
