"""Models from a hub on this machine: downloads, recorded commits, resuming, and offline errors."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from ingest.errors import UserError
from ingest.i18n import translate
from rag.chatglm.hub import Origin, fetch, origin
from tests.rag.chatglm.hubs import COMMIT, NEWER, Hub

BIG = bytes(range(256)) * 8192  # 2 MB
FILES = {
    "config.json": b'{"model_type": "chatglm"}',
    "modeling_chatglm.py": b"raise SystemExit",
    "tokenizer.model": b"pieces",
    "tokenizer_config.json": b"{}",
    "MODEL_LICENSE": b"do no harm",
    "README.md": b"# Model",
    "model.safetensors": BIG,
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "pytorch_model.bin": BIG,
    "pytorch_model.bin.index.json": b"{}",
}
READ = set(FILES) - {
    "modeling_chatglm.py", "README.md", "pytorch_model.bin", "pytorch_model.bin.index.json",
}  # fmt: skip
NAMES = ("owner/model", "modelscope:owner/model")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(dict(FILES)).serve() as hub:
        yield hub


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hugging Face's cache, which is the user's own otherwise."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    # Without seconds of waiting for a server that is not there, and without a user's own key:
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope"))
    return tmp_path


def get(name: str, home: Path, hub: Hub | None, *, weights: bool = True) -> Path:
    address = hub.address if hub else "http://127.0.0.1:9"  # where nobody listens
    return fetch(name, cache=home / "models", weights=weights, endpoint=address)


def files_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {"origin.json"}


def test_a_folder_is_itself(home: Path) -> None:
    assert get(str(home), home, None) == home
    assert origin(home) is None


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_one_kind_and_no_code_are_fetched(name: str, home: Path, hub: Hub) -> None:
    directory = get(name, home, hub)
    assert files_in(directory) == READ
    assert set(hub.names) == READ
    assert (directory / "model.safetensors").read_bytes() == BIG


@pytest.mark.parametrize("name", NAMES)
def test_torch_files_are_fetched_without_safetensors(name: str, home: Path, hub: Hub) -> None:
    del hub.files["model.safetensors"], hub.files["model.safetensors.index.json"]
    assert {"pytorch_model.bin", "pytorch_model.bin.index.json"} <= files_in(get(name, home, hub))


@pytest.mark.parametrize("name", NAMES)
def test_the_commit_is_recorded_and_kept(name: str, home: Path, hub: Hub) -> None:
    directory = get(name, home, hub)
    recorded = origin(directory)
    assert recorded
    assert (recorded.hub, recorded.name) == (hub.address, "owner/model")
    assert len(recorded.revision) == 40
    hub.commit, hub.requests = NEWER, []
    assert get(name, home, hub) == directory  # the hub's newer commit does not change it
    assert get(name, home, None) == directory
    assert hub.requests == []


def test_a_branch_is_looked_up_again_and_a_commit_is_not(home: Path, hub: Hub) -> None:
    first = get("owner/model", home, hub)
    hub.commit = NEWER
    newer = get("owner/model@main", home, hub)
    assert newer != first
    assert origin(newer) == Origin(hub.address, "owner/model", NEWER)
    assert get(f"owner/model@{COMMIT}", home, None) == first


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_alone_is_not_a_copy_of_the_model(name: str, home: Path, hub: Hub) -> None:
    directory = get(name, home, hub, weights=False)
    assert files_in(directory) == {"config.json"}
    assert get(name, home, None, weights=False) == directory
    with pytest.raises(UserError, match="can't be reached"):
        get(name, home, None)
    assert files_in(get(name, home, hub)) == READ


@pytest.mark.parametrize("name", NAMES)
def test_the_offline_error_names_the_download_and_its_folder(name: str, home: Path) -> None:
    with pytest.raises(UserError) as caught:
        get(name, home, None)
    place = home / "models" / "owner" / "model"
    for line in (str(caught.value), translate(caught.value.message, "zh")):
        assert str(place) in line
        assert "safetensors" in line
        assert "owner/model" in line
        assert "\n" not in line
    place.mkdir(parents=True)
    (place / "config.json").write_bytes(FILES["config.json"])
    assert get(name, home, None) == place


@pytest.mark.parametrize("name", NAMES)
def test_offline_mode_sends_no_request(
    name: str, home: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        get(name, home, hub)
    assert hub.requests == []


def test_offline_another_tools_copy_is_used(home: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = huggingface_hub.snapshot_download("owner/model", endpoint=hub.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert get("owner/model", home, None) == Path(copy)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("owner/nothing", "has no model owner/nothing"),
        ("modelscope:owner/nothing", "has no model owner/nothing"),
        ("owner/model@v9", "no revision 'v9'"),
        ("modelscope:owner/model@v9", "no revision 'v9'"),
        ("nowhere", "no folder nowhere"),
        ("/nowhere/at/all", "no folder /nowhere"),
        ("../up", "no folder ../up"),
        ("a/b/c", "no folder a/b/c"),
        ("", "no folder"),
        ("own er/model", "own er/model"),
    ],
)
def test_a_missing_model_is_reported(name: str, says: str, home: Path, hub: Hub) -> None:
    with pytest.raises(UserError, match=says) as caught:
        get(name, home, hub)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_repository_without_a_config_is_refused(name: str, home: Path, hub: Hub) -> None:
    del hub.files["config.json"]
    with pytest.raises(UserError, match="holds no config"):
        get(name, home, hub)


def test_a_broken_download_is_resumed(home: Path, hub: Hub) -> None:
    hub.cut = len(BIG) - 1
    directory = get("modelscope:owner/model", home, hub)
    assert ("model.safetensors", len(BIG) - 1) in hub.requests
    assert (directory / "model.safetensors").read_bytes() == BIG
    assert files_in(directory) == READ


def test_after_a_failed_download_only_the_rest_is_fetched(
    home: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_RETRY_TIMES", 0)
    hub.cut = 300_000
    with pytest.raises(UserError, match=r"can't be reached .*failed to download") as caught:
        get("modelscope:owner/model", home, hub)
    assert "\n" not in str(caught.value)
    hub.cut, hub.requests = None, []
    directory = get("modelscope:owner/model", home, hub)
    assert hub.requests == [("model.safetensors", 300_000)]
    assert files_in(directory) == READ


def test_a_file_with_another_hash_is_not_used(home: Path, hub: Hub) -> None:
    place = home / "models" / "modelscope" / "owner" / "model"
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(b"x" * len(BIG))
    (place / "tokenizer.model.incomplete").write_bytes(b"x" * 3)
    directory = get("modelscope:owner/model", home, hub)
    assert (directory / "model.safetensors").read_bytes() == BIG
    assert (directory / "tokenizer.model").read_bytes() == FILES["tokenizer.model"]


def test_after_a_kill_only_missing_files_are_fetched(home: Path, hub: Hub) -> None:
    """The first process knows the hub from HF_ENDPOINT alone."""
    hub.files["model-2.safetensors"] = BIG * 16
    hub.pause = 0.01
    code = "import sys; from pathlib import Path; from rag.chatglm.hub import fetch\n"
    code += "fetch('owner/model', cache=Path(sys.argv[1]))"
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(home / "hf")}
    environment.pop("HF_HUB_OFFLINE", None)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(home / "models")], env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while hub.sent < 8 * len(BIG) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert set(hub.names) == READ | {"model-2.safetensors"}
    hub.pause, hub.requests = 0, []
    directory = get("owner/model", home, hub)
    assert hub.names == ["model-2.safetensors"]
    assert files_in(directory) == READ | {"model-2.safetensors"}
    assert (directory / "model-2.safetensors").read_bytes() == BIG * 16


def test_a_damaged_record_is_ignored(tmp_path: Path) -> None:
    for text in ("", "[]", json.dumps({"hub": "x"})):
        (tmp_path / "origin.json").write_text(text)
        assert origin(tmp_path) is None
