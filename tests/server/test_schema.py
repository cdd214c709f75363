"""The server behaves as its OpenAPI document says: schemathesis searches for differences."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.auth import Grant
from tests.server.servers import Filled, filled

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    with filled(tmp_path_factory.mktemp("server"), largest_upload=10_000, rate=10**6) as full:
        yield full


def test_schemathesis_finds_nothing(mine: Filled, tmp_path: Path) -> None:
    """All phases and checks, with a key, so that it also searches for routes that work without one."""
    key = mine.state.keys.create("schemathesis", [Grant("admin")])
    done = subprocess.run(
        [
            SCHEMATHESIS, "run", f"{mine.client.base_url}/openapi.json",
            "--header", f"Authorization: Bearer {key}",
            "--max-examples", "4", "--generation-deterministic", "--continue-on-failure",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "25 passed" in done.stdout, done.stdout


def test_every_route_is_described(mine: Filled) -> None:
    key = mine.state.keys.create("a", [Grant("read")])
    headers = {"Authorization": f"Bearer {key}"}
    document = mine.client.get("/openapi.json", headers=headers).json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("tags"), (path, method)
            assert "401" in operation["responses"], (path, method)
            if method in ("post", "patch"):
                assert "requestBody" in operation or path.endswith("/cancel")
