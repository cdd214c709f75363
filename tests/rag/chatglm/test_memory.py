"""What each mode needs, against upstream's own figures, the models themselves, and what is free."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Glm4Config, GlmConfig, PreTrainedConfig

import rag.chatglm  # noqa: F401  (registers the models)
from ingest.errors import UserError
from ingest.i18n import translate
from rag.chatglm.memory import (
    CONTEXT,
    GB,
    MemoryBudget,
    Mode,
    Need,
    Quant,
    check,
    gigabytes,
    modes,
    need,
    on_disk,
    parameters,
    pick,
    ram_free,
)

GLM1 = {
    "model_type": "chatglm",
    "hidden_size": 4096,
    "inner_hidden_size": 16384,
    "num_layers": 28,
    "num_attention_heads": 32,
    "vocab_size": 130528,
    "max_sequence_length": 2048,
    "position_encoding_2d": True,
    "bos_token_id": 130004,
    "eos_token_id": 130005,
    "torch_dtype": "float16",
}
GLM2 = {
    "model_type": "chatglm",
    "_name_or_path": "THUDM/chatglm2-6b",
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "kv_channels": 128,
    "num_layers": 28,
    "num_attention_heads": 32,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "add_qkv_bias": True,
    "rmsnorm": True,
    "seq_length": 32768,
    "torch_dtype": "float16",
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_layers": 2}
SMALL1 = GLM1 | SMALL | {"inner_hidden_size": 160}
SMALL2 = GLM2 | SMALL | {"ffn_hidden_size": 112, "kv_channels": 16}


def config_of(data: Mapping[str, object], folder: Path) -> PreTrainedConfig:
    (folder / "config.json").write_text(json.dumps(data))
    return AutoConfig.from_pretrained(folder)


def on_cuda(
    config: PreTrainedConfig, quant: str, *, context: int = CONTEXT, prompt: int = 0, logits: int = 1
) -> float:
    """GB for `context` tokens, of which `prompt` (0: all) are read, with logits at `logits` positions."""
    [mode] = [mode for mode in modes(config, "cuda") if mode.quant == quant]
    whole = need(config, mode, context=context)
    work = need(config, mode, context=prompt or context).work
    work += (logits - 1) * config.vocab_size * mode.dtype.itemsize
    return (whole.total - whole.work + work) / GB


# Upstream's tables: ChatGLM-6B/README.md ("minimum GPU memory, inference"), for its whole window;
# ChatGLM2-6B/README.md ("encoding 2048", all logits; "generating 8192" from a short prompt). Their
# int8 and int4 are checkpoints in upstream's own layout: embedding and head stay float16.
TABLE = [
    (GLM1, {}, {"none": 13, "int8": 8, "int4": 6}),
    (GLM2, {"context": 2048, "logits": 2048}, {"none": 13.1, "int8": 8.2, "int4": 5.5}),
    (GLM2, {"context": 8192, "prompt": 1}, {"none": 12.8, "int8": 8.1, "int4": 5.1}),
]


@pytest.mark.parametrize(("data", "options", "figures"), TABLE)
def test_upstreams_figures_are_reproduced(
    data: Mapping[str, object], options: dict[str, int], figures: dict[str, float], tmp_path: Path
) -> None:
    for quant, figure in figures.items():
        bits = {} if quant == "none" else {"quantization_bit": int(quant[-1])}
        config = config_of(data | bits, tmp_path)
        assert on_cuda(config, quant, **options) == pytest.approx(figure, rel=0.1)


@pytest.mark.parametrize(("data", "options", "figures"), TABLE)
def test_quantising_here_needs_about_as_much_as_published_codes(
    data: Mapping[str, object], options: dict[str, int], figures: dict[str, float], tmp_path: Path
) -> None:
    config = config_of(data, tmp_path)
    for quant, figure in figures.items():
        assert on_cuda(config, quant, **options) == pytest.approx(figure, rel=0.1)


@pytest.mark.parametrize(
    "data", [SMALL1, SMALL2, SMALL2 | {"add_qkv_bias": False}, SMALL2 | {"tie_word_embeddings": True}]
)
def test_parameters_are_those_of_the_model(data: Mapping[str, object], tmp_path: Path) -> None:
    assert_counted(config_of(data, tmp_path))


@pytest.mark.parametrize("kind", [GlmConfig, Glm4Config])
def test_parameters_of_the_native_classes_are_counted(kind: type[PreTrainedConfig]) -> None:
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 16}
    assert_counted(kind(**small, num_attention_heads=4, num_key_value_heads=2))


def assert_counted(config: PreTrainedConfig) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()  # transformers 5.0 leaves it undone on the meta device
    counts = parameters(config)
    named = dict(model.named_parameters())
    linears = [p.numel() for name, p in named.items() if ".layers." in name and p.ndim == 2]
    assert counts.total == sum(parameter.numel() for parameter in named.values())
    assert counts.linears == sum(linears)


def test_the_published_models_have_the_sizes_their_users_report(tmp_path: Path) -> None:
    assert parameters(config_of(GLM1, tmp_path)).total == 6_173_286_400
    assert parameters(config_of(GLM2, tmp_path)).total == 6_243_584_000
    # GLM-4 issue 436: 9,402,736,640 with 2,785,280 of an adapter.
    assert parameters(GlmConfig()).total + 2_785_280 == 9_402_736_640


def test_a_checkpoint_of_codes_has_one_mode(tmp_path: Path) -> None:
    for extra in ({"quantization_bit": 4}, {"packed": {"bits": 4, "block": 32}}):
        config = config_of(GLM2 | extra, tmp_path)
        for device in ("cpu", "cuda"):
            assert [mode.quant for mode in modes(config, device)] == ["int4"]


def test_more_bits_and_longer_contexts_need_more(tmp_path: Path) -> None:
    config = config_of(GLM2, tmp_path)
    for device in ("cpu", "cuda"):
        by_quant = {mode.quant: need(config, mode).total for mode in modes(config, device)}
        assert by_quant["int4"] < by_quant["int8"] < by_quant["none"]
        for mode in modes(config, device):
            assert need(config, mode, context=4096).total > need(config, mode).total
    embedded = config_of(GLM1 | {"quantization_bit": 4, "quantization_embeddings": True}, tmp_path)
    plain = config_of(GLM1 | {"quantization_bit": 4}, tmp_path)
    assert on_cuda(embedded, "int4") < on_cuda(plain, "int4")


class Machine:
    """A root folder with the files that tell what is free."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> "Machine":
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)
        return self

    def groups(self, line: str) -> "Machine":
        self.write("proc/self/statm", "1000 500 1 1 0 1 0\n")
        self.write("proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
        return self.write("proc/self/cgroup", line)


def test_without_limits_the_machines_memory_counts(tmp_path: Path) -> None:
    assert ram_free(Machine(tmp_path).groups("0::/\n").root) == 8000 * 1024


def test_a_limit_of_version_2_includes_parents_but_not_the_page_cache(tmp_path: Path) -> None:
    machine = Machine(tmp_path).groups("0::/jobs/one\n")
    machine.write("sys/fs/cgroup/jobs/memory.max", "5000000\n")
    machine.write("sys/fs/cgroup/jobs/memory.current", "4000000\n")
    machine.write("sys/fs/cgroup/jobs/memory.stat", "anon 7\nfile 9\ninactive_file 200000\n")
    machine.write("sys/fs/cgroup/jobs/one/memory.max", "max\n")
    machine.write("sys/fs/cgroup/jobs/one/memory.current", "4000000\n")
    assert ram_free(tmp_path) == 1_200_000


def test_a_limit_of_version_1_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path).groups("9:name=systemd:/\n4:memory:/box\n0::/\n")
    machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    machine.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "77\n")
    machine.write("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 0\n")
    machine.write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "3000000\n")
    machine.write("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "1000000\n")
    machine.write("sys/fs/cgroup/memory/box/memory.stat", "cache 1\ntotal_inactive_file 5\n")
    assert ram_free(tmp_path) == 2_000_005


def test_invisible_groups_are_ignored(tmp_path: Path) -> None:
    assert ram_free(Machine(tmp_path).groups("0::/../../elsewhere\n").root) == 8000 * 1024


def test_without_proc_the_free_memory_is_unknown(tmp_path: Path) -> None:
    assert ram_free(tmp_path) is None


def test_the_free_memory_of_this_machine_is_read() -> None:
    budget = MemoryBudget.here()
    assert budget.ram is None or 0 < budget.ram < 2**50


def found(need: Need | None) -> tuple[str, str] | None:
    return need and (need.mode.device, need.mode.quant)


@pytest.mark.parametrize(
    ("ram", "gpu", "expected"),
    [
        (64, 0, ("cpu", "int8")),
        (7, 0, ("cpu", "int4")),
        (3, 0, None),
        (64, 24, ("cuda", "none")),
        (64, 10, ("cuda", "int8")),
        (64, 6, ("cuda", "nf4")),
        (64, 2, ("cpu", "int8")),
    ],
)
def test_the_best_mode_that_fits_is_picked(
    ram: int, gpu: int, expected: tuple[str, str] | None, tmp_path: Path
) -> None:
    budget = MemoryBudget(ram * GB, gpu * GB)
    assert found(pick(config_of(GLM2, tmp_path), budget)) == expected


def test_too_little_memory_is_refused_with_both_figures_and_the_way_out(tmp_path: Path) -> None:
    config = config_of(GLM2, tmp_path)

    def need_of(quant: Quant, ram: int) -> Need:
        return check(config, Mode(quant, "cpu", torch.float32), MemoryBudget(ram * GB, 0))

    with pytest.raises(UserError, match=r"2\d\.\d GB .*10\.0 GB are free; use --quant int8 \(") as caught:
        need_of("none", 10)
    assert f"{gigabytes(need_of('int8', 10).total)})" in str(caught.value)
    with pytest.raises(UserError, match=r"2\.0 GB are free; free \d\.\d GB or use a smaller model"):
        need_of("int4", 2)
    assert "10.0 GB" in translate(caught.value.message, "zh")
    assert need_of("none", 64).mode == Mode("none", "cpu", torch.float32)


def test_the_files_that_would_be_read_are_counted(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"12345")
    assert on_disk(tmp_path) == 5
    (tmp_path / "model-1.safetensors").write_bytes(b"12")
    (tmp_path / "model-2.safetensors").write_bytes(b"1")
    assert on_disk(tmp_path) == 3
