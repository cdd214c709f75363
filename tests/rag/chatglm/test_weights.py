"""Files are read as data, and only whole ones."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ingest.errors import UserError
from rag.chatglm.weights import Checkpoint, read_bin, read_safetensors

A, B = torch.arange(6.0).view(2, 3), torch.ones(4, dtype=torch.float16)


def index(directory: Path, shards: dict[str, str], kind: str = "model.safetensors") -> None:
    (directory / f"{kind}.index.json").write_text(json.dumps({"weight_map": shards}), "utf-8")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": A}, tmp_path / "model-1.safetensors")
    save_file({"b": B}, tmp_path / "model-2.safetensors")
    index(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    return tmp_path


def test_shards_are_one_table(sharded: Path) -> None:
    checkpoint = Checkpoint.open(sharded)
    assert set(checkpoint.files) == {"a", "b"}
    assert torch.equal(checkpoint.read("a"), A)
    assert torch.equal(checkpoint.read("b"), B)


def test_bin_shards_are_one_table(tmp_path: Path) -> None:
    torch.save({"a": A}, tmp_path / "pytorch_model-1.bin")
    torch.save({"b": B}, tmp_path / "pytorch_model-2.bin")
    shards = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    index(tmp_path, shards, "pytorch_model.bin")
    checkpoint = Checkpoint.open(tmp_path)
    assert torch.equal(checkpoint.read("b"), B)
    assert torch.equal(checkpoint.read("a"), A)


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "model.safetensors")
    torch.save({"a": A + 1}, tmp_path / "pytorch_model.bin")
    assert torch.equal(Checkpoint.open(tmp_path).read("a"), A)


def test_missing_shards_are_all_named(sharded: Path) -> None:
    (sharded / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 2 shards: model-2\.safetensors"):
        Checkpoint.open(sharded)


def test_an_index_with_missing_tensors_is_refused(sharded: Path) -> None:
    index(sharded, {"a": "model-1.safetensors", "b": "model-1.safetensors"})
    with pytest.raises(UserError, match="says that it holds b"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("name", ["../model-1.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_must_stay_in_its_folder(sharded: Path, name: str) -> None:
    index(sharded, {"a": name})
    with pytest.raises(UserError, match="not in this folder"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_an_invalid_index_is_refused(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text, "utf-8")
    with pytest.raises(UserError, match=r"not (an index|JSON|a JSON object)"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kept", [0, 20, 0.5, -1])
def test_truncated_files_are_refused(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    tensors = {"a": torch.randn(50, 50)}
    if name.endswith("bin"):
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match="is damaged"):
        Checkpoint.open(tmp_path)


def test_a_pointer_of_git_lfs_is_recognised(tmp_path: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (tmp_path / "pytorch_model.bin").write_text(text, "utf-8")
    with pytest.raises(UserError, match="git lfs pull"):
        Checkpoint.open(tmp_path)


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    with pytest.raises(UserError, match=r"holds no weights.*readme\.txt"):
        Checkpoint.open(tmp_path)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]  (what pickle calls)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": A, "bomb": Bomb(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="more than tensors"):
        read_bin(tmp_path / "pytorch_model.bin")
    assert not (tmp_path / "ran").exists()


def test_other_torch_files_are_refused(tmp_path: Path) -> None:
    torch.save({"a": 3}, tmp_path / "x.bin")
    with pytest.raises(UserError, match="not a table of tensors"):
        read_bin(tmp_path / "x.bin")


def test_all_tensors_of_a_file_are_read(tmp_path: Path) -> None:
    save_file({"a": A, "b": B}, tmp_path / "x.safetensors")
    assert set(read_safetensors(tmp_path / "x.safetensors")) == {"a", "b"}
