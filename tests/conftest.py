"""What several test files share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest
from hypothesis import settings

# Before torch is imported: on matrices as small as the tests' more threads gain little, and lose much
# where other tests compute beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell lets what it starts in the background ignore Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Half of the usual examples: on two cores the whole suite has to end within minutes.
settings.register_profile("suite", max_examples=50, deadline=None)
settings.load_profile("suite")
LONG = {
    "test_docs_run.py", "test_profile.py", "test_domain.py", "test_loop.py", "test_milvus.py",
    "test_train_devices.py", "test_ingest_ray.py", "test_base_install.py", "test_generate_end_to_end.py",
}  # fmt: skip
"""Files of a minute and more. They come first, so that at the end no worker waits for another."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small ChatGLM3 that answers from passages (`tests.tiny`)."""
    from tests.tiny import FOLDER

    return Path(copytree(FOLDER, tmp_path_factory.mktemp("models") / "tiny-chatglm3"))


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The beginning of addresses on a Milvus server of this machine (`tests.milvus`)."""
    from tests.milvus import milvus

    with milvus(tmp_path_factory.mktemp("milvus")) as address:
        yield address


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with files that are called as our packages. None of them may run."""
    here = tmp_path / "here"
    here.mkdir()
    for name in ("corpora", "finetune", "ingest", "rag", "server"):
        code = f"open({str(here / 'ran')!r}, 'w').close(); raise SystemExit('the user’s {name}.py')"
        (here / f"{name}.py").write_text(code, "utf-8")
    monkeypatch.chdir(here)
    yield here
    assert not (here / "ran").exists()
