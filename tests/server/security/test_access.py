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
from tests.server.servers import Filled, filled, state

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
            found |= {
                (method, path) for method in getattr(route, "methods", None) or ("GET", "POST")
            }
    server.close()
    return sorted(found)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[Filled, str]]:
    """A server that needs keys, and a key for reading."""
    with filled(tmp_path) as mine:
        yield mine, key(mine, "read")


NAMING: dict[str, dict[str, Any]] = {
    "/ask": {"json": {"question": "试用期？", "knowledge_base": "mine"}},
    "/search": {"json": {"question": "试用期？", "knowledge_base": "mine"}},
    "/v1/chat/completions": {
        "json": {"model": "mine", "messages": [{"role": "user", "content": "试用期？"}]}
    },
    "/v1/embeddings": {"json": {"model": "mine", "input": "试用期？"}},
    "/knowledge-bases": {"json": {"name": "theirs"}},
    "/knowledge-bases/{knowledge_base}": {"json": {"instruction": "obey"}},
    "/knowledge-bases/{knowledge_base}/documents": {"files": {"files": ("a.txt", b"x")}},
}
"""Valid requests to the knowledge base `mine`; only the caller is wrong."""


def key(mine: Filled, *grants: str) -> str:
    return mine.state.keys.create("k", [parse_grant(each) for each in grants])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def filled_in(path: str, base: str = "mine") -> str:
    path = path.replace("{knowledge_base}", base).replace("{model}", base).replace("{number}", "1")
    return re.sub(r"\{(document|job|trace)\}", "0" * 24, path)


def is_open(path: str) -> bool:
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX)


def test_the_route_list_is_whole(routes: list[tuple[str, str]]) -> None:
    """The next test depends on this list: if it were shorter, the test would check less."""
    paths = {path for _, path in routes}
    assert {"/mcp", "/openapi.json", "/metrics", "/ask", "/", "/web/index.html"} <= paths
    assert ("DELETE", "/knowledge-bases/{knowledge_base}/documents/{document}") in routes
    assert {path for path in paths if is_open(path)} == {
        "/", "/healthz", "/readyz", "/web/index.html"
    }  # fmt: skip


def test_every_route_answers_401_without_a_key_that_is_known(
    routes: list[tuple[str, str]], guarded: tuple[Filled, str]
) -> None:
    mine, known = guarded
    revoked = key(mine, "admin")
    mine.state.keys.revoke(mine.state.keys.authenticate(revoked).id)  # type: ignore[union-attr]
    tried: list[dict[str, str]] = [
        {}, {"Authorization": "Bearer"}, bearer("x"), bearer(revoked), bearer(known[:-1] + "!"),
        {"Authorization": f"Basic {known}"}, {"X-Api-Key": known}, {"Cookie": f"key={known}"},
    ]  # fmt: skip
    asked = 0
    for method, path in routes:
        for headers in tried:
            answer = mine.client.request(method, filled_in(path), headers=headers)
            if is_open(path):
                assert answer.status_code < 300, (method, path)
                continue
            assert answer.status_code == 401, (method, path, headers)
            assert answer.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert answer.json()["error"]["code"] == "invalid_api_key"
            asked += 1
    assert asked > 100
    assert mine.client.get(f"/metrics?key={known}&api_key={known}").status_code == 401
    assert mine.client.get("/no/such/route").status_code == 401
    assert mine.client.get("/web/..%2fmetrics").status_code in (401, 404)


def test_a_reader_changes_nothing_anywhere(
    routes: list[tuple[str, str]], guarded: tuple[Filled, str]
) -> None:
    mine, reader = guarded
    mine.client.headers.update(bearer(key(mine, "admin")))
    before = mine.documents()
    document = before["poem.txt"]["id"]
    job = mine.client.get("/jobs").json()["jobs"][0]["id"]
    asked = 0
    for method, path in routes:
        if method in WRITERS and path not in READS:
            exact = filled_in(path.replace("{document}", document).replace("{job}", job))
            answer = mine.client.request(
                method, exact, headers=bearer(reader), **NAMING.get(path, {})
            )
            assert answer.status_code == 403, (method, path, answer.text)
            assert answer.json()["error"]["code"] == "insufficient_scope"
            asked += 1
    assert asked >= 6
    assert mine.documents() == before
    assert mine.client.get("/knowledge-bases/mine").json()["instruction"] == ""


def test_what_a_key_may_not_read_is_not_there_for_it(
    routes: list[tuple[str, str]], guarded: tuple[Filled, str]
) -> None:
    """A key of one knowledge base learns nothing of another: not by name, job, trace or number."""
    mine, _ = guarded
    admin = bearer(key(mine, "admin"))
    mine.client.headers.update(admin)
    mine.client.post("/knowledge-bases", json={"name": "other"})
    other = bearer(key(mine, "admin:other"))
    trace = mine.ask("试用期不得超过几个月？")["id"]
    job = mine.client.get("/jobs").json()["jobs"][0]["id"]
    document = mine.documents()["poem.txt"]["id"]
    secret = ("试用期", "poem", "劳动", document, job, trace)
    for method, path in routes:
        exact = path.replace("{document}", document).replace("{job}", job).replace("{trace}", trace)
        if is_open(path) or path in ("/mcp", "/openapi.json"):
            continue
        sent = NAMING.get(path, {}) if method in WRITERS else {}
        answer = mine.client.request(method, filled_in(exact), headers=other, **sent)
        if "{" in path or (path in NAMING and method == "POST" and path != "/knowledge-bases"):
            assert answer.status_code == 404, (method, path, answer.text)
        for word in secret:
            assert word not in answer.text or word in exact, (method, path)
    listed = mine.client.get("/knowledge-bases", headers=other).json()["knowledge_bases"]
    assert [base["name"] for base in listed] == ["other"]
    assert [m["id"] for m in mine.client.get("/v1/models", headers=other).json()["data"]] == [
        "other"
    ]
    assert mine.client.get("/jobs", headers=other).json()["jobs"] == []
    assert "poem.txt" in mine.documents()


def test_a_revoked_key_ends_between_two_requests(guarded: tuple[Filled, str]) -> None:
    mine, reader = guarded
    assert mine.client.get("/session", headers=bearer(reader)).status_code == 200
    mine.state.keys.revoke("k")
    assert mine.client.get("/session", headers=bearer(reader)).status_code == 401


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
    with filled(tmp_path) as mine:
        if keyed:
            mine.client.headers.update(bearer(key(mine, "admin")))
        before = mine.documents()
        for method, path in routes:
            if method in WRITERS:
                answer = mine.client.request(method, filled_in(path), headers=headers)
                assert answer.status_code == 403, (method, path)
                assert answer.json()["error"]["code"] == "foreign_page"
        form = {"Content-Type": "text/plain", **headers}  # what a form can send without asking
        answer = mine.client.post("/knowledge-bases", content=b'{"name":"x"}', headers=form)
        assert answer.status_code == 403
        assert mine.documents() == before
        answer = mine.client.get("/session", headers=headers)
        assert "access-control-allow-origin" not in answer.headers
        asked = {**headers, "Access-Control-Request-Method": "DELETE"}
        answer = mine.client.options("/knowledge-bases/mine", headers=asked)
        assert answer.status_code in (401, 403, 405)


def test_the_page_itself_may(tmp_path: Path) -> None:
    with filled(tmp_path) as mine:
        own = {"Origin": str(mine.client.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
        answer = mine.client.post("/knowledge-bases", json={"name": "x"}, headers=own)
        assert answer.status_code == 201


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "0.0.0.0"])
def test_a_name_that_somebody_lets_point_here_gets_nothing(host: str, tmp_path: Path) -> None:
    """DNS rebinding: the browser takes this server for the attacker's and shows its answers to them."""
    with filled(tmp_path) as mine:
        for path in ("/", "/session", "/knowledge-bases", "/web/index.html"):
            answer = mine.client.get(path, headers={"Host": host})
            assert answer.status_code in (400, 421), path
            assert "mine" not in answer.text
        answer = mine.client.get("/session", headers={"Host": "localhost:1"})
        assert answer.status_code == 200


def test_a_body_that_says_it_is_no_json_is_no_request(tmp_path: Path) -> None:
    with filled(tmp_path) as mine:
        answer = mine.client.post(
            "/knowledge-bases", content=b'{"name":"x"}', headers={"Content-Type": "text/plain"}
        )
        assert answer.status_code in (415, 422)


@pytest.mark.parametrize(("base", "status"), [("mine", 403), ("none", 404)])
def test_files_are_not_taken_in_from_who_may_not_upload(
    tmp_path: Path, base: str, status: int
) -> None:
    """The server answers as soon as the head of a large upload has arrived."""
    with filled(tmp_path) as mine:
        token = mine.state.keys.create("reader", [parse_grant("read:mine")])
        url = mine.client.base_url
        with socket.create_connection((url.host, url.port or 80), timeout=10) as line:
            line.sendall(
                f"POST /knowledge-bases/{base}/documents HTTP/1.1\r\nHost: {url.host}\r\n"
                f"Authorization: Bearer {token}\r\nContent-Length: 100000000\r\n"
                "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n".encode()
            )
            told = b""
            while piece := line.recv(65536):
                told += piece
        assert told.startswith(f"HTTP/1.1 {status}".encode())
