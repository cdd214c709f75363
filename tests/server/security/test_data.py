"""Text is data: no template, no markup, no command; and no message contains a secret."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.auth import parse_grant
from server.telemetry import JsonLines
from tests.fakes import CopyingGenerator
from tests.server.servers import SampleServer, sample_server

TEMPLATES = ["{{7*7}}", "{x.__class__}", "${7*7}", "<%= 7*7 %>", "%(x)s", "#{7*7}", "{0.__class__}"]
MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SampleServer]:
    with sample_server(tmp_path_factory.mktemp("server")) as full:
        yield full


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_stay_plain_text(tmp_path: Path, template: str) -> None:
    """The text is in a document, a question and the knowledge base's instruction."""
    generator = CopyingGenerator()
    with sample_server(tmp_path, generator=generator) as sample:
        sample.upload({"t.txt": f"口令文件里写着 {template} 这样的口令。\n"})
        sample.client.patch("/knowledge-bases/mine", json={"instruction": f"i {template}"})
        answer = sample.ask(f"口令文件里写着什么口令？{template}")
        prompt = "".join(message.text for message in generator.prompts[-1])
        assert prompt.count(template) >= 3
        assert "49" not in prompt
        assert answer["question"].endswith(template)


def test_html_is_never_served_as_html(sample: SampleServer) -> None:
    """Whatever its name and type are; also if a browser opens its address."""
    for name, kind in (("x.txt", "text/html"), ("x.html", "text/plain"), ("x.svg", "image/png")):
        parts = [("files", (name, MARKUP.encode(), kind))]
        sample.client.post("/knowledge-bases/mine/documents", files=parts)
    sample.upload({"y.md": f"# {MARKUP}\n\n{MARKUP} 正文里的标记。\n"})
    for document in sample.documents().values():
        for rest in ("", "/text", "/pages/1"):
            path = f"/knowledge-bases/mine/documents/{document['id']}{rest}"
            answer = sample.client.get(path)
            assert answer.headers["content-type"].split(";")[0] in ("application/json", "image/png")
            assert answer.headers["x-content-type-options"] == "nosniff"
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy


def test_the_bytes_decide_the_type_of_a_file(sample: SampleServer) -> None:
    job = sample.upload({"really.pdf": b"PK\x03\x04 no archive", "program.txt": b"\x7fELF" + bytes(999)})
    assert {file["state"] for file in job["files"]} == {"refused"}
    assert all(file["problem"] for file in job["files"])


def test_a_body_above_the_limit_is_refused_with_or_without_content_length(tmp_path: Path) -> None:
    with sample_server(tmp_path, largest_batch=100_000, largest_upload=50_000) as sample:
        path = "/knowledge-bases/mine/documents"
        large = {"files": ("a.txt", b"x" * 200_000)}
        assert sample.client.post(path, files=large).status_code == 413

        def pieces() -> Iterator[bytes]:
            for _ in range(8):
                yield b"x" * 1_000_000

        for route in ("/ask", "/search", "/v1/chat/completions", "/mcp", "/knowledge-bases"):
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            answer = sample.client.post(route, content=b"x" * 8_000_000, headers=headers)
            assert answer.status_code == 413, route
            answer = sample.client.post(route, content=pieces(), headers=headers)
            assert answer.status_code == 413, route
        job = sample.upload({"b.txt": "x" * 60_000, "c.txt": "足够小的文件。\n"})
        states = {file["name"]: file["state"] for file in job["files"]}
        assert states == {"b.txt": "refused", "c.txt": "added"}
        originals = tmp_path / "mine" / "originals"
        assert sum(file.stat().st_size for file in originals.iterdir()) < 50_000


def test_too_many_files_at_once_are_refused(tmp_path: Path) -> None:
    with sample_server(tmp_path, most_files=3) as sample:
        parts = [("files", (f"{number}.txt", b"x")) for number in range(4)]
        answer = sample.client.post("/knowledge-bases/mine/documents", files=parts)
        assert answer.status_code in (400, 413)
        assert len(sample.documents()) == 3


def test_a_key_above_its_rate_gets_429_with_retry_after(tmp_path: Path) -> None:
    """It does not slow down another key."""
    with sample_server(tmp_path, rate=60) as sample:
        fast, slow = (sample.state.keys.create(name, [parse_grant("read")]) for name in ("fast", "slow"))
        bearer = {"Authorization": f"Bearer {fast}"}
        answers = [sample.client.get("/session", headers=bearer) for _ in range(60)]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert int(answers[-1].headers["retry-after"]) >= 1
        other = sample.client.get("/session", headers={"Authorization": f"Bearer {slow}"})
        assert other.status_code == 200


def test_the_log_has_no_text_file_name_or_key(tmp_path: Path) -> None:
    """This holds for valid and invalid requests, and for those that meet a bug."""
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.setFormatter(JsonLines())
    handler.addFilter(lambda record: record.name != "httpx")  # the client that this test uses
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with sample_server(tmp_path) as sample:
            sample.upload({"机密名单.txt": "绝密的内容在此。\n"})
            sample.ask("绝密的内容在哪里？")
            key = sample.state.keys.create("张三", [parse_grant("admin")])
            sample.client.headers["Authorization"] = f"Bearer {key}"
            sample.ask("绝密的内容在哪里？")
            sample.client.post("/ask", json={"question": "绝密", "knowledge_base": "机密库"})
            sample.client.post("/ask", content=b'{"question": "\xe7\xbb\x9d\xe5\xaf\x86')
            sample.client.get("/session", headers={"Authorization": f"Bearer {key}x"})
            sample.client.get(f"/metrics?key={key}&q=绝密")
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    assert sum(line["event"] == "request" for line in lines) > 6
    for secret in ("绝密", "机密", "mine", "试用期", key, key[17:], "张三"):
        assert secret not in output.getvalue(), secret


def test_a_new_server_has_no_key_and_no_password(tmp_path: Path) -> None:
    with sample_server(tmp_path) as sample:
        assert sample.state.keys.all() == []
        for word in ("admin", "root", "123456", "rag", "changeme"):
            assert sample.state.keys.authenticate(word) is None


def test_a_bug_is_logged_with_its_traceback_but_without_its_message() -> None:
    output, secret = io.StringIO(), "绝密"
    handler = logging.StreamHandler(output)
    handler.setFormatter(JsonLines())
    log = logging.getLogger("test.of.bugs")
    log.addHandler(handler)
    try:
        try:
            raise KeyError(secret)
        except KeyError as first:
            raise ValueError(secret) from first
    except ValueError:
        log.exception("bug")
    finally:
        log.removeHandler(handler)
    line = json.loads(output.getvalue())
    assert secret not in output.getvalue()
    assert line["traceback"].index("KeyError") < line["traceback"].index("ValueError")
    assert Path(__file__).name in line["traceback"]
