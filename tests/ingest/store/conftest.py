from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from ingest.store import MilvusAddress, parse_address

Location = Path | MilvusAddress


@pytest.fixture(params=["local", "milvus"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Location]:
    """Gives another place for a knowledge base each time: all that is said of a store holds for both."""
    if request.param == "local":
        return lambda: tmp_path / uuid4().hex
    server: str = request.getfixturevalue("milvus_server")
    return lambda: parse_address(f"{server}/kb_{uuid4().hex}")
