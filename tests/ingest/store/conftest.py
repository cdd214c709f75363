from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from ingest.store import Address, parse_address
from tests.milvus import milvus

Place = Path | Address


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with milvus(tmp_path_factory.mktemp("milvus")) as address:
        yield address


@pytest.fixture(params=["local", pytest.param("milvus", marks=pytest.mark.xdist_group("milvus"))])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Place]:
    """Gives another place for a knowledge base each time: all that is said of a store holds for both."""
    if request.param == "local":
        return lambda: tmp_path / uuid4().hex
    server: str = request.getfixturevalue("server")
    return lambda: parse_address(f"{server}/kb_{uuid4().hex}")
