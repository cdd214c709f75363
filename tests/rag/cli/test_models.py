"""`rag export` as a person types it."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from ingest.errors import UserError
from rag.chatglm.adapter_files import Contract
from rag.chatglm.loading import load
from rag.cli.models import export
from tests.commands import rag
from tests.rag.chatglm.adapters import linears, tensors, write
from tests.rag.chatglm.golden import COPY
from tests.rag.chatglm.models import golden_model

Shown = pytest.CaptureFixture[str]


def test_an_export_says_how_to_serve_it(tmp_path: Path, capsys: Shown) -> None:
    source, target = golden_model("v3", tmp_path / "source"), tmp_path / "out"
    done = rag("export", source, target, "--to", "glm-hf", environment={"LC_ALL": "C.UTF-8"})
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{target}: float16, 0.00 GB. Serve it: vllm serve {target}\n"
    assert load_file(target / "model-00001-of-00001.safetensors")
    again = rag("export", source, target, environment={"LC_ALL": "zh_CN.UTF-8"})
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == f"rag：{target} 已存在；请指定一个新文件夹\n"


def test_chatglm_6b_ends_in_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    source = COPY / "v1" / "tiny_safetensors"
    done = rag("export", source, tmp_path / "out", environment={"LC_ALL": "C.UTF-8"})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"serve it with: rag serve --model {source}" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", "bfloat16"), ("float32", "float32")])
def test_an_adapter_goes_in_and_what_a_folder_cannot_say_is_told(
    tmp_path: Path, capsys: Shown, dtype: str, kind: str
) -> None:
    source = golden_model("v3", tmp_path / "source")
    ends = ["query_key_value"]
    made = tensors(linears(load(source, quant="none"), upstream=True), ends)
    there = write(tmp_path / "adapter", made, ends)
    Contract(3, "tutorial").write(there)
    export(str(source), tmp_path / "out", dtype=dtype, adapter=there)
    out, err = capsys.readouterr()
    assert f"{kind}, 0.00 GB, 9 layers merged (rounding takes " in out
    assert "prompts of the form 'tutorial'" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"to": "gguf"}, "--to is gguf; it is glm-hf"),
        ({"dtype": "int8"}, "--dtype is int8; it is one of bf16, fp16, fp32"),
        ({"adapter": Path("nowhere")}, "nowhere is not a folder"),
        ({"alpha": 32.0}, "--lora-alpha is 32, but no adapter is named"),
    ],
)
def test_what_it_cannot_do_is_told_at_once(
    tmp_path: Path, options: dict[str, Path | str | float], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        export("no-such-model", tmp_path / "out", **options)  # type: ignore[arg-type]
