"""A built folder appears whole, once, and is repaired when it is damaged."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.embed.e5 import cached_folder, is_intact
from ingest.errors import UserError


class Builder:
    """Writes two files and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        (folder / "large").write_bytes(bytes(range(256)) * 100)
        (folder / "small").write_text("x")


@pytest.fixture
def builder() -> Builder:
    return Builder()


def test_builds_once(tmp_path: Path, builder: Builder) -> None:
    for _ in range(3):
        assert cached_folder(tmp_path / "deep" / "made", builder) == tmp_path / "deep" / "made"
    assert builder.times == 1


def damage_cut(folder: Path) -> None:
    os.truncate(folder / "large", 1000)


def damage_flip(folder: Path) -> None:
    data = bytearray((folder / "large").read_bytes())
    data[5000] ^= 1
    (folder / "large").write_bytes(data)


def damage_remove(folder: Path) -> None:
    (folder / "small").unlink()


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"large": 3')


def damage_manifest_shape(folder: Path) -> None:
    (folder / "manifest.json").write_text('["large"]')


@pytest.mark.parametrize(
    "damage", [damage_cut, damage_flip, damage_remove, damage_manifest, damage_manifest_shape]
)
def test_damage_is_repaired(
    tmp_path: Path, builder: Builder, damage: Callable[[Path], None]
) -> None:
    folder = cached_folder(tmp_path / "made", builder)
    damage(folder)
    assert not is_intact(folder)
    cached_folder(folder, builder)
    assert builder.times == 2
    assert is_intact(folder)


def test_copied_cache_is_hashed_not_rebuilt(tmp_path: Path, builder: Builder) -> None:
    folder = cached_folder(tmp_path / "made", builder)
    os.utime(folder / "large", (1, 1))
    cached_folder(folder, builder)
    assert builder.times == 1


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("stopped half way")

    with pytest.raises(RuntimeError):
        cached_folder(tmp_path / "made", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["made.lock"]


def test_folder_that_cannot_be_made_names_the_way_out(tmp_path: Path, builder: Builder) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        cached_folder(tmp_path / "file" / "made", builder)


def test_two_processes_build_once(tmp_path: Path) -> None:
    script = """
import sys, time
from collections.abc import Callable
from pathlib import Path
from ingest.embed.e5 import cached_folder

def build(folder):
    with (Path(sys.argv[1]) / "log").open("a") as log:
        log.write("built\\n")
    time.sleep(0.3)
    (folder / "file").write_text("x" * 10000)

cached_folder(Path(sys.argv[1]) / "made", build)
assert (Path(sys.argv[1]) / "made" / "file").stat().st_size == 10000
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    root = Path(__file__).parents[3]
    running = [subprocess.Popen(command, cwd=root) for _ in range(3)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
