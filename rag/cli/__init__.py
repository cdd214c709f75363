"""The command `rag`."""

from rag.cli.app import main

__all__ = ["main"]
