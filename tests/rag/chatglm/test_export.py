"""Exported models, loaded by plain transformers in a process that can't import our code."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from ingest.errors import UserError
from rag.chatglm import export as module
from rag.chatglm import loading
from rag.chatglm.adapter import Adapters
from rag.chatglm.adapter_files import Contract, read_adapter
from rag.chatglm.chat import FORMATS, encode_chat
from rag.chatglm.export import export
from rag.chatglm.loading import load, save_quantized
from rag.chatglm.tokenization import open_tokenizer
from tests.finetune.bases import FUSED, base
from tests.rag.chatglm import vocabularies
from tests.rag.chatglm.adapters import linears, tensors, write
from tests.rag.chatglm.golden import COPY, arrays, largest_difference
from tests.rag.chatglm.models import golden_model, random_model

PLAIN = Path(__file__).with_name("plain.py")
PROMPTS = ("short", "medium", "one", "long")
CHATS = [
    [{"role": "user", "content": "What is a licence?"}],
    [{"role": "system", "content": "只用中文。"}, {"role": "user", "content": " 你好<|user|>"}],
    [
        {"role": "user", "content": "philosophy\n\n[gMASK]<sop>"},
        {"role": "assistant", "content": "\nsop"},
        {"role": "user", "content": "甲"},
        {"role": "user", "content": ""},
    ],
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"say": "<|user|>"}}}
CALLED = [
    {"role": "system", "content": "\n\n只用中文。", "tools": [TOOL]},
    {"role": "user", "content": "\n天气"},
    {"role": "assistant", "content": '{"a": 1}', "metadata": "f"},
    {"role": "observation", "content": "[22]"},
]


@dataclass(frozen=True, slots=True)
class Seen:
    """The results of plain transformers for each export."""

    results: dict[str, Any]
    logits: dict[str, Tensor]
    folders: dict[str, Path]
    """The source of each export."""


def chats_of(generation: int) -> list[list[dict[str, Any]]]:
    """The golden chats as messages."""
    chats = []
    path = vocabularies.GOLDEN / f"v{generation}_golden.json"
    for case in json.loads(path.read_text("utf-8"))["chat"]:
        history = case["history"]
        if history and isinstance(history[0], list):
            history = [
                {"role": role, "content": text}
                for pair in history
                for role, text in zip(("user", "assistant"), pair, strict=True)
            ]
        chats.append([*history, {"role": case.get("role", "user"), "content": case["query"]}])
    return chats


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """All exports at once: a process takes seconds to import what loads them."""
    work = tmp_path_factory.mktemp("exports")
    sources: dict[str, Path] = {}
    jobs: dict[str, dict[str, Any]] = {}

    def job(name: str, source: Path, inputs: dict[str, Any], **options: Any) -> None:
        export(source, work / name, **options)
        sources[name] = source
        jobs[name] = {"folder": str(work / name), **inputs}

    for version in ("v2", "v3"):
        golden = arrays(COPY / version / "golden.npz")
        ids = [golden[f"single.{name}.input_ids"].tolist() for name in PROMPTS]
        written = [golden[f"generate.{name}.input_ids"].tolist() for name in ("short", "medium")]
        source = golden_model(version, work / f"{version}-source")
        job(version, source, {"ids": ids, "greedy": written, "chats": CHATS})
    codes = arrays(COPY / "v2" / "quant_golden.npz")
    for bits in (4, 8):
        ids = [codes[f"int{bits}.{name}.input_ids"].tolist() for name in ("short", "medium")]
        source = golden_model("v2", work / f"int{bits}-source", f"tiny_int{bits}")
        job(f"int{bits}", source, {"ids": ids}, dtype=torch.float32)
    golden = arrays(COPY / "v3" / "golden.npz")
    ids = [golden[f"single.{name}.input_ids"].tolist() for name in PROMPTS]
    save_quantized(work / "v3-source", work / "packed-source", bits=4)
    job("packed", work / "packed-source", {"ids": ids}, dtype=torch.float32)
    sizes = linears(load(work / "v3-source", quant="none"), upstream=True)
    factors = tensors(sizes, FUSED, dora=True)
    adapter = write(work / "adapter", factors, FUSED, use_dora=True)
    Contract(3, stop_ids=(7,)).write(adapter)
    options = {"adapter": read_adapter(adapter), "dtype": torch.float32}
    job("merged", work / "v3-source", {"ids": ids, "greedy": [ids[0]]}, **options)
    for generation in (2, 3):
        source = random_model(work / f"published{generation}-source", generation)
        golden_words = json.loads((vocabularies.GOLDEN / f"v{generation}_golden.json").read_text("utf-8"))
        inputs = {
            "texts": [item["text"] for item in golden_words["items"]],
            "pairs": [[pair["text"], pair["text_pair"]] for pair in golden_words["pairs"]],
            "chats": chats_of(generation),
        }
        job(f"published{generation}", source, inputs)
    source = random_model(work / "glm4-source", 4)
    job("glm4", source, {"ids": [ids[0]], "chats": [*CHATS, CALLED]})
    (work / "jobs.json").write_text(json.dumps(jobs), "utf-8")
    command = [sys.executable, "-I", "-W", "error", str(PLAIN), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((work / "results.json").read_text("utf-8"))
    logits = load_file(work / "logits.safetensors")
    return Seen(results, logits, sources | {"adapter": adapter})


def test_transformers_loads_every_exported_tensor(seen: Seen) -> None:
    for name, result in seen.results.items():
        assert result["class"] == "transformers.models.glm.modeling_glm", name
        assert not any(result["left"].values()), name


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_logits_and_greedy_words_are_the_originals(seen: Seen, version: str) -> None:
    golden = arrays(COPY / version / "golden.npz")
    for i, name in enumerate(PROMPTS):
        assert largest_difference(seen.logits[f"{version}.{i}"], golden[f"single.{name}.logits"]) < 1e-3, name
    for i, name in enumerate(("short", "medium")):
        expected = golden[f"generate.{name}.output_ids"].tolist()
        assert seen.results[version]["greedy"][i] == expected


@pytest.mark.parametrize("bits", [4, 8])
def test_published_codes_give_the_originals_logits(seen: Seen, bits: int) -> None:
    golden = arrays(COPY / "v2" / "quant_golden.npz")
    for i, name in enumerate(("short", "medium")):
        expected = golden[f"int{bits}.{name}.logits"]
        assert largest_difference(seen.logits[f"int{bits}.{i}"], expected) < 1e-3


@pytest.mark.parametrize("name", ["packed", "merged", "glm4"])
def test_transformers_computes_the_same_as_our_model(seen: Seen, name: str) -> None:
    ours: Any = load(seen.folders[name], quant="none", dtype=torch.float32, device="cpu")
    if name == "merged":
        adapters = Adapters(ours)
        adapters.attach(read_adapter(seen.folders["adapter"]), "it")
        adapters.activate("it")
    golden = arrays(COPY / "v3" / "golden.npz")
    for i, prompt in enumerate(PROMPTS if name != "glm4" else PROMPTS[:1]):
        ids = golden[f"single.{prompt}.input_ids"]
        with torch.no_grad():
            wanted = ours(ids).logits
        assert largest_difference(seen.logits[f"{name}.{i}"], wanted) < 1e-3
    if name == "merged":
        ids = golden["single.short.input_ids"]
        out = ours.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None)
        assert seen.results[name]["greedy"][0] == out.tolist()


@pytest.mark.parametrize("name", ["v2", "v3", "glm4"])
def test_chats_get_our_ids(seen: Seen, name: str) -> None:
    generation = int(name[-1])
    tokenizer = open_tokenizer(seen.folders[name])
    chats = [*CHATS, CALLED] if name == "glm4" else CHATS
    for chat, ids in zip(chats, seen.results[name]["chats"], strict=True):
        assert ids == encode_chat(chat, tokenizer, generation)


@pytest.mark.parametrize("generation", [2, 3])
def test_texts_and_chats_get_the_originals_ids(seen: Seen, generation: int) -> None:
    path = vocabularies.GOLDEN / f"v{generation}_golden.json"
    golden = json.loads(path.read_text("utf-8"))
    result = seen.results[f"published{generation}"]
    assert result["texts"] == [item["ids_special"] for item in golden["items"]]
    assert result["pairs"] == [pair["ids"] for pair in golden["pairs"]]
    assert result["chats"] == [case["encoding"]["input_ids"][0] for case in golden["chat"]]


def test_exported_stop_ids_are_ours(seen: Seen) -> None:
    for name in ("published2", "published3", "glm4"):
        stops = FORMATS[int(name[-1])].stop_ids(open_tokenizer(seen.folders[name]))
        assert tuple(seen.results[name]["eos"]) == stops
    assert seen.results["merged"]["eos"][-1] == 7  # the adapter's own


def test_the_config_serves_transformers_4_and_5(tmp_path: Path) -> None:
    source = random_model(tmp_path / "source", 4)
    export(source, tmp_path / "out", dtype=torch.bfloat16)
    data = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert data["model_type"] == "glm"
    assert data["rope_theta"] == data["rope_parameters"]["rope_theta"] == 5e6
    assert data["partial_rotary_factor"] == 0.5
    assert (data["dtype"], data["attention_bias"], data["head_dim"]) == ("bfloat16", True, 8)
    assert data["num_key_value_heads"] == 1
    assert "generation" not in data
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters["rope_theta"] == 5e6
    for tensor in load_file(tmp_path / "out" / "model-00001-of-00001.safetensors").values():
        assert tensor.dtype == torch.bfloat16


def test_the_window_of_chatglm2_is_that_of_its_training(tmp_path: Path) -> None:
    source = golden_model("v2", tmp_path / "source")
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps(config | {"seq_length": 32768}), "utf-8")
    export(source, tmp_path / "out")
    data = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert data["max_position_embeddings"] == 8192


def test_the_32k_models_stretch_their_positions(tmp_path: Path) -> None:
    golden = arrays(COPY / "v3" / "rope_ratio_golden.npz")
    source = golden_model("v3", tmp_path / "source")
    config = json.loads((source / "config.json").read_text("utf-8"))
    ratio = golden["rope_ratio"].item()
    (source / "config.json").write_text(json.dumps(config | {"rope_ratio": ratio}), "utf-8")
    export(source, tmp_path / "out")
    out: Any = load(tmp_path / "out", quant="none", dtype=torch.float32)
    for name in ("medium", "long"):
        with torch.no_grad():
            logits = out(golden[f"{name}.input_ids"]).logits
        assert largest_difference(logits, golden[f"{name}.logits"]) < 1e-3


def test_shards_hold_each_tensor_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "SHARD", 1 << 15)
    source = golden_model("v3", tmp_path / "source")
    (source / "MODEL_LICENSE").write_text("terms", "utf-8")
    shares: list[float] = []
    export(source, tmp_path / "out", progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text("utf-8"))
    files: dict[str, str] = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        files |= dict.fromkeys(load_file(path), path.name)
    assert files == index["weight_map"]
    assert len(set(files.values())) > 3
    assert (tmp_path / "out" / "MODEL_LICENSE").read_text("utf-8") == "terms"


def test_a_killed_export_leaves_nothing(tmp_path: Path) -> None:
    source = golden_model("v3", tmp_path / "source")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom rag.chatglm.export import export\n"
        "def halfway(share):\n    if share > 0.5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "export(Path(sys.argv[1]), Path(sys.argv[2]), progress=halfway)\n"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    export(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def wrong_words(source: Path) -> None:
    vocabularies.small_3(source, 560)


def without_tokenizer(source: Path) -> None:
    (source / "tokenizer.model").unlink()


@pytest.mark.parametrize(
    ("spoil", "says"), [(wrong_words, "569 words, the model 544"), (without_tokenizer, "has no tokenizer")]
)
def test_mismatches_are_reported_before_anything_is_written(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    source = golden_model("v3", tmp_path / "source")
    spoil(source)
    with pytest.raises(UserError, match=says):
        export(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_full_disk_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SIDE_BYTES", 1 << 60)
    source = golden_model("v3", tmp_path / "source")
    with pytest.raises(UserError, match=r"GB left and out takes 1152921504\.6 GB; free some"):
        export(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_other_models_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rag serve --model"):
        export(COPY / "v1" / "tiny_safetensors", tmp_path / "out")
    for kind in ("glm4", "glm4-0414"):
        with pytest.raises(UserError, match="own layout already; give it to the engine as it is"):
            export(base(kind, tmp_path), tmp_path / "out")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_of_other_models_and_prefixes_are_refused(tmp_path: Path) -> None:
    source = golden_model("v3", tmp_path / "source")
    made = tensors(linears(load(source, quant="none"), upstream=True), ["query_key_value"])
    there = write(tmp_path / "adapter", made, ["query_key_value"])
    Contract(3, base="0" * 32).write(there)
    with pytest.raises(UserError, match="was trained on the model 0000"):
        export(source, tmp_path / "out", adapter=read_adapter(there))
    Contract(2).write(there)
    with pytest.raises(UserError, match="made for ChatGLM generation 2"):
        export(source, tmp_path / "out", adapter=read_adapter(there))
    prefix = tmp_path / "prefix"
    prefix.mkdir()
    state = {"transformer.prefix_encoder.embedding.weight": torch.ones(4, 8)}
    torch.save(state, prefix / "pytorch_model.bin")
    with pytest.raises(UserError, match="P-Tuning prefix, which other engines have no place for"):
        export(source, tmp_path / "out", adapter=read_adapter(prefix))
    assert not (tmp_path / "out").exists()


def test_weights_too_large_for_a_precision_are_refused(tmp_path: Path) -> None:
    source = random_model(tmp_path / "source", 4)
    state = load_file(source / "model.safetensors")
    state = {name: tensor.float() for name, tensor in state.items()}
    state["transformer.encoder.layers.0.mlp.dense_4h_to_h.weight"][0, 0] = 1e6
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="too large for float16"):
        export(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_rounding_takes_away_is_not_merged(tmp_path: Path) -> None:
    source = golden_model("v3", tmp_path / "source")
    made = tensors(linears(load(source, quant="none"), upstream=True), ["query_key_value"])
    weak = {name: value * (1e-4 if "lora_B" in name else 1) for name, value in made.items()}
    adapter = read_adapter(write(tmp_path / "adapter", weak, ["query_key_value"]))
    with pytest.raises(UserError, match=r"not kept: rounding to bfloat16 takes .* use --dtype float32"):
        export(source, tmp_path / "out", adapter=adapter, dtype=torch.bfloat16)
    assert not (tmp_path / "out").exists()
    assert export(source, tmp_path / "out", adapter=adapter, dtype=torch.float32).lost < 0.01
