"""The bundled encoder as it is built once for all tests: building it takes longer than most of them."""

import os
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatglm-rag"


def link_encoders(home: Path) -> Path:
    """`home`, as the `XDG_CACHE_HOME` of a command that finds built encoders there, and nothing else."""
    cache = home / "chatglm-rag"
    cache.mkdir(parents=True, exist_ok=True)
    (CACHE / "encoders").mkdir(parents=True, exist_ok=True)
    (cache / "encoders").symlink_to(CACHE / "encoders")
    return home
