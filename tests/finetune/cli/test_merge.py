"""`rag finetune merge` and `rag finetune export` as a person types them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rag.cli
from finetune.cli.merge import export, merge
from ingest.errors import UserError
from rag.chatglm.adapter_files import Contract
from rag.chatglm.loading import load
from tests.commands import rag
from tests.finetune.bases import base
from tests.rag.chatglm.adapters import linears, tensors, write
from tests.rag.chatglm.golden import COPY

MODEL = COPY / "v2" / "tiny_safetensors"
Shown = pytest.CaptureFixture[str]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    ends = ["query_key_value"]
    sizes = linears(load(MODEL, quant="none"), upstream=True)
    return write(tmp_path / "adapter", tensors(sizes, ends), ends)


def test_a_merge_reports_rounding_and_what_a_folder_lacks(
    tmp_path: Path, adapter: Path, capsys: Shown
) -> None:
    Contract(2, "tutorial", (5, 7)).write(adapter)
    merge(str(MODEL), adapter, tmp_path / "merged", upstream=True)
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'merged'}: 6 layers merged, float16, 0.00 GB; rounding")
    assert "prompts of the form 'tutorial', which a model's folder can't say" in err
    assert "ends answers with the tokens 5, 7" in err
    names = load_file(tmp_path / "merged" / "model-00001-of-00001.safetensors")
    assert any("self_attention.query_key_value" in name for name in names)


def test_a_large_loss_by_rounding_is_noted(tmp_path: Path, capsys: Shown) -> None:
    model = base("glm4", tmp_path)
    made = tensors(linears(load(model, quant="none")), ["q_proj"])
    weak = {name: value * (0.02 if "lora_B" in name else 1) for name, value in made.items()}
    there = write(tmp_path / "weak", weak, ["q_proj"])
    merge(str(model), there, tmp_path / "a", dtype="bfloat16")
    out, err = capsys.readouterr()
    assert "2 layers merged, bfloat16" in out
    assert "--dtype float32 would keep it whole" in err
    merge(str(model), there, tmp_path / "b", dtype="float32")
    out, err = capsys.readouterr()
    assert "rounding takes 0.0% of what the adapter changes" in out
    assert "keep it whole" not in err


def test_a_quantized_base_is_refused_in_the_readers_language(tmp_path: Path, adapter: Path) -> None:
    codes = COPY / "v2" / "tiny_int4"
    words = ("finetune", "merge", codes, adapter, tmp_path / "merged")
    done = rag(*words, environment={"LC_ALL": "zh_CN.UTF-8"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(f"rag：{codes} 存的是 int4 量化权重")
    assert not (tmp_path / "merged").exists()


def test_an_export_and_its_inverse(tmp_path: Path, adapter: Path, capsys: Shown) -> None:
    native, back = tmp_path / "native", tmp_path / "back"
    export(adapter, native, str(MODEL), to="native")
    assert capsys.readouterr() == (f"{native}: 6 modules under native names\n", "")
    export(native, back, str(MODEL))
    assert capsys.readouterr() == (f"{back}: 2 modules under upstream names\n", "")
    held, found = (load_file(place / "adapter_model.safetensors") for place in (adapter, back))
    assert all(torch.equal(held[name], found[name]) for name in held | found)


def test_alpha_may_be_given_if_the_adapter_lacks_it(tmp_path: Path, adapter: Path, capsys: Shown) -> None:
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="rag finetune merge has --lora-alpha"):
        export(adapter, tmp_path / "out", str(MODEL))
    export(adapter, tmp_path / "out", str(MODEL), alpha=16)
    assert "lora_alpha 16 as given" in capsys.readouterr().err


def test_an_unknown_precision_or_layout_is_refused(tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(UserError, match="--dtype is int8; it is one of float32, float16, bfloat16"):
        merge(str(MODEL), adapter, tmp_path / "merged", dtype="int8")
    with pytest.raises(UserError, match="--to is tutorial; it is upstream or native"):
        export(adapter, tmp_path / "out", str(MODEL), to="tutorial")


def test_an_existing_folder_is_an_error_before_the_model_is_fetched(tmp_path: Path, adapter: Path) -> None:
    for command in (merge, export):
        with pytest.raises(UserError, match="adapter exists already; name a new folder"):
            command(model="no/such-model", adapter=adapter, target=adapter)
