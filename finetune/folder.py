"""A folder that appears with all that is in it, or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest.store.files import sync_directory


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, put into its place at the end; what was there goes then."""
    out = out.resolve()  # also of "." and of a link
    out.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    old = new.with_name(f"{new.name}-old")
    try:
        yield new
        new.chmod(0o755)
        sync_directory(new)
        if out.exists():
            out.rename(old)
        new.rename(out)
        sync_directory(out.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
