"""A knowledge base as one file, and back."""

from pathlib import Path


def snapshot(directory: Path, archive: Path) -> None:
    raise NotImplementedError


def restore(archive: Path, directory: Path) -> None:
    raise NotImplementedError
