"""On every route: no access without a key, beyond the key's scopes, or from pages of other sites."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Mount

from server.app import create_app
from server.auth import parse_grant
from server.middleware import PUBLIC_PATHS, PUBLIC_PREFIX
from tests.server.servers import SampleServer, sample_server, state

WRITERS = ("POST", "PUT", "PATCH", "DELETE")
READS = ("/ask", "/search", "/v1/chat/completions", "/v1/embeddings", "/mcp")
"""These use POST because a question may be long; they change nothing."""


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Method and path of every route of the application, as the application lists them."""
    server = state(tmp_path_factory.mktemp("routes"))
    app = create_app(server)
    found = {
        (method, path)
        for path, operations in app.openapi()["paths"].items()
        for method in map(str.upper, operations)
    }
    for route in app.router.routes:
        path = getattr(route, "path", None)
        if isinstance(route, Mount):
            found.add(("GET", f"{path}/index.html"))
        elif path is not None:
            found |= {(method, path) for method in getattr(route, "methods", None) or ("GET", "POST")}
    server.close()
    return sorted(found)


@pytest.fixture
def server_with_keys(tmp_path: Path) -> Iterator[tuple[SampleServer, str]]:
    """A server that needs keys, and a key for reading."""
    with sample_server(tmp_path) as sample:
        yield sample, key(sample, "read")


NAMING: dict[str, dict[str, Any]] = {
    "/ask": {"json": {"question": "试用期？", "knowledge_base": "mine"}},
    "/search": {"json": {"question": "试用期？", "knowledge_base": "mine"}},
    "/v1/chat/completions": {
        "json": {"model": "mine", "messages": [{"role": "user", "content": "试用期？"}]}
    },
    "/v1/embeddings": {"json": {"model": "mine", "input": "试用期？"}},
    "/knowledge-bases": {"json": {"name": "theirs"}},
    "/knowledge-bases/{knowledge_base}": {"json": {"instruction": "obey"}},
    "/knowledge-bases/{knowledge_base}/reread": {"json": {"documents": ["0" * 24]}},
    "/knowledge-bases/{knowledge_base}/documents": {"files": {"files": ("a.txt", b"x")}},
}
"""Valid requests to the knowledge base `mine`; only the caller is wrong."""


def key(sample: SampleServer, *grants: str) -> str:
    return sample.state.keys.create("k", [parse_grant(each) for each in grants])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def fill_path(path: str, base: str = "mine") -> str:
    path = path.replace("{knowledge_base}", base).replace("{model}", base).replace("{number}", "1")
    return re.sub(r"\{(document|job|trace)\}", "0" * 24, path)


def is_open(path: str) -> bool:
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX)


def test_the_route_list_is_complete(routes: list[tuple[str, str]]) -> None:
    """The next test depends on this list: if it were shorter, the test would check less."""
    paths = {path for _, path in routes}
    assert {"/mcp", "/openapi.json", "/metrics", "/ask", "/", "/web/index.html"} <= paths
    assert ("DELETE", "/knowledge-bases/{knowledge_base}/documents/{document}") in routes
    assert {path for path in paths if is_open(path)} == {
        "/", "/docs", "/healthz", "/readyz", "/web/index.html"
    }  # fmt: skip


def test_every_route_answers_401_without_a_valid_key(
    routes: list[tuple[str, str]], server_with_keys: tuple[SampleServer, str]
) -> None:
    sample, key_of_reader = server_with_keys
    revoked = key(sample, "admin")
    sample.state.keys.revoke(sample.state.keys.authenticate(revoked).id)  # type: ignore[union-attr]
    tried: list[dict[str, str]] = [
        {}, {"Authorization": "Bearer"}, bearer("x"), bearer(revoked), bearer(key_of_reader[:-1] + "!"),
        {"Authorization": f"Basic {key_of_reader}"}, {"X-Api-Key": key_of_reader}, {"Cookie": f"key={key_of_reader}"},
    ]  # fmt: skip
    count = 0
    for method, path in routes:
        for headers in tried:
            answer = sample.client.request(method, fill_path(path), headers=headers)
            if is_open(path):
                assert answer.status_code < 300, (method, path)
                continue
            assert answer.status_code == 401, (method, path, headers)
            assert answer.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert answer.json()["error"]["code"] == "invalid_api_key"
            count += 1
    assert count > 100
    assert sample.client.get(f"/metrics?key={key_of_reader}&api_key={key_of_reader}").status_code == 401
    assert sample.client.get("/no/such/route").status_code == 401
    assert sample.client.get("/web/..%2fmetrics").status_code in (401, 404)


def test_a_reader_changes_nothing_anywhere(
    routes: list[tuple[str, str]], server_with_keys: tuple[SampleServer, str]
) -> None:
    sample, reader = server_with_keys
    sample.client.headers.update(bearer(key(sample, "admin")))
    before = sample.documents()
    document = before["poem.txt"]["id"]
    job = sample.client.get("/jobs").json()["jobs"][0]["id"]
    count = 0
    for method, path in routes:
        if method in WRITERS and path not in READS:
            exact = fill_path(path.replace("{document}", document).replace("{job}", job))
            answer = sample.client.request(method, exact, headers=bearer(reader), **NAMING.get(path, {}))
            assert answer.status_code == 403, (method, path, answer.text)
            assert answer.json()["error"]["code"] == "insufficient_scope"
            count += 1
    assert count >= 6
    assert sample.documents() == before
    assert sample.client.get("/knowledge-bases/mine").json()["instruction"] == ""


def test_what_a_key_may_not_read_is_404(
    routes: list[tuple[str, str]], server_with_keys: tuple[SampleServer, str]
) -> None:
    """A key of one knowledge base learns nothing of another: not by name, job, trace or number."""
    sample, _ = server_with_keys
    admin = bearer(key(sample, "admin"))
    sample.client.headers.update(admin)
    sample.client.post("/knowledge-bases", json={"name": "other"})
    other = bearer(key(sample, "admin:other"))
    trace = sample.ask("试用期不得超过几个月？")["id"]
    job = sample.client.get("/jobs").json()["jobs"][0]["id"]
    document = sample.documents()["poem.txt"]["id"]
    secret = ("试用期", "poem", "劳动", document, job, trace)
    for method, path in routes:
        exact = path.replace("{document}", document).replace("{job}", job).replace("{trace}", trace)
        if is_open(path) or path in ("/mcp", "/openapi.json"):
            continue
        sent = NAMING.get(path, {}) if method in WRITERS else {}
        answer = sample.client.request(method, fill_path(exact), headers=other, **sent)
        if "{" in path or (path in NAMING and method == "POST" and path != "/knowledge-bases"):
            assert answer.status_code == 404, (method, path, answer.text)
        for word in secret:
            assert word not in answer.text or word in exact, (method, path)
    listed = sample.client.get("/knowledge-bases", headers=other).json()["knowledge_bases"]
    assert [base["name"] for base in listed] == ["other"]
    assert [m["id"] for m in sample.client.get("/v1/models", headers=other).json()["data"]] == ["other"]
    assert sample.client.get("/jobs", headers=other).json()["jobs"] == []
    assert "poem.txt" in sample.documents()


def test_a_revoked_key_ends_between_two_requests(server_with_keys: tuple[SampleServer, str]) -> None:
    sample, reader = server_with_keys
    assert sample.client.get("/session", headers=bearer(reader)).status_code == 200
    sample.state.keys.revoke("k")
    assert sample.client.get("/session", headers=bearer(reader)).status_code == 401


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},  # another port is another site
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("keyed", [False, True])
def test_a_page_of_another_site_changes_nothing(
    headers: dict[str, str], keyed: bool, tmp_path: Path, routes: list[tuple[str, str]]
) -> None:
    with sample_server(tmp_path) as sample:
        if keyed:
            sample.client.headers.update(bearer(key(sample, "admin")))
        before = sample.documents()
        for method, path in routes:
            if method in WRITERS:
                answer = sample.client.request(method, fill_path(path), headers=headers)
                assert answer.status_code == 403, (method, path)
                assert answer.json()["error"]["code"] == "foreign_page"
        form = {"Content-Type": "text/plain", **headers}  # what a form can send without asking
        answer = sample.client.post("/knowledge-bases", content=b'{"name":"x"}', headers=form)
        assert answer.status_code == 403
        assert sample.documents() == before
        answer = sample.client.get("/session", headers=headers)
        assert "access-control-allow-origin" not in answer.headers
        count = {**headers, "Access-Control-Request-Method": "DELETE"}
        answer = sample.client.options("/knowledge-bases/mine", headers=count)
        assert answer.status_code in (401, 403, 405)


def test_the_servers_own_page_may_change_things(tmp_path: Path) -> None:
    with sample_server(tmp_path) as sample:
        own = {"Origin": str(sample.client.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
        answer = sample.client.post("/knowledge-bases", json={"name": "x"}, headers=own)
        assert answer.status_code == 201


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "0.0.0.0"])
def test_an_unknown_host_name_is_rejected(host: str, tmp_path: Path) -> None:
    """DNS rebinding: the browser takes this server for the attacker's and shows its answers to them."""
    with sample_server(tmp_path) as sample:
        for path in ("/", "/session", "/knowledge-bases", "/web/index.html"):
            answer = sample.client.get(path, headers={"Host": host})
            assert answer.status_code in (400, 421), path
            assert "mine" not in answer.text
        answer = sample.client.get("/session", headers={"Host": "localhost:1"})
        assert answer.status_code == 200


def test_a_body_of_another_content_type_is_rejected(tmp_path: Path) -> None:
    with sample_server(tmp_path) as sample:
        answer = sample.client.post(
            "/knowledge-bases", content=b'{"name":"x"}', headers={"Content-Type": "text/plain"}
        )
        assert answer.status_code in (415, 422)


@pytest.mark.parametrize(("base", "status"), [("mine", 403), ("none", 404)])
def test_an_upload_without_permission_is_rejected_before_its_files(
    tmp_path: Path, base: str, status: int
) -> None:
    """The server answers as soon as the head of a large upload has arrived."""
    with sample_server(tmp_path) as sample:
        token = sample.state.keys.create("reader", [parse_grant("read:mine")])
        url = sample.client.base_url
        with socket.create_connection((url.host, url.port or 80), timeout=10) as line:
            line.sendall(
                f"POST /knowledge-bases/{base}/documents HTTP/1.1\r\nHost: {url.host}\r\n"
                f"Authorization: Bearer {token}\r\nContent-Length: 100000000\r\n"
                "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n".encode()
            )
            reply = b""
            while piece := line.recv(65536):
                reply += piece
        assert reply.startswith(f"HTTP/1.1 {status}".encode())
