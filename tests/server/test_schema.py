"""The server behaves as its OpenAPI document says: schemathesis searches for differences."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.auth import Grant
from tests.server.servers import SampleServer, sample_server

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SampleServer]:
    with sample_server(tmp_path_factory.mktemp("server"), largest_upload=10_000, rate=10**6) as full:
        yield full


CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("routes", "passed"),
    [
        (["--exclude-path", CHAT], 26),
        # This route refuses with a reason what OpenAI's schema allows and nothing here can do, such as logprobs.
        (["--include-path", CHAT, "--exclude-checks", "positive_data_acceptance"], 1),
    ],
)
def test_schemathesis_finds_no_errors(
    sample: SampleServer, tmp_path: Path, routes: list[str], passed: int
) -> None:
    """All phases and checks, with a key, so that it also searches for routes that work without one."""
    key = sample.state.keys.create("schemathesis", [Grant("admin")])
    result = subprocess.run(
        [
            SCHEMATHESIS, "run", f"{sample.client.base_url}/openapi.json", *routes,
            "--header", f"Authorization: Bearer {key}",
            "--max-examples", "4", "--generation-deterministic", "--continue-on-failure",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    assert f"{passed} passed" in result.stdout, result.stdout


def test_every_route_is_described(sample: SampleServer) -> None:
    key = sample.state.keys.create("a", [Grant("read")])
    headers = {"Authorization": f"Bearer {key}"}
    document = sample.client.get("/openapi.json", headers=headers).json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("tags"), (path, method)
            assert "401" in operation["responses"], (path, method)
            if method in ("post", "patch"):
                assert "requestBody" in operation or path.endswith("/cancel")
