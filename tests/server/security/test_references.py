"""Nothing is fetched: no address in a document, a name or a question is ever requested."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ingest.documents import package, paragraph, relations, word
from tests.server.servers import sample_server


@contextmanager
def canary() -> Iterator[tuple[str, list[str]]]:
    """A server that records its requests."""
    paths: list[str] = []

    class RecordingHandler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"fetched")

        do_POST = do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), RecordingHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", paths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def documents(url: str, folder: Path) -> dict[str, bytes | str]:
    """Every format in which a document can name an address."""
    linked = word(folder / "linked.docx", paragraph("有外部引用的文档"))
    package(
        folder / "remote.docx",
        {
            "word/document.xml": '<w:document xmlns:w="http://schemas.openxmlformats.org/'
            'wordprocessingml/2006/main"><w:body><w:p><w:r><w:t>远程模板</w:t></w:r></w:p>'
            "</w:body></w:document>",
            "word/_rels/document.xml.rels": relations(
                {"r1": ("attachedTemplate", f"{url}/template"), "r2": ("image", f"{url}/image")}
            ).replace("/>", ' TargetMode="External"/>'),
        },
    )
    return {
        "a.html": f'<html><head><link rel=stylesheet href="{url}/css"><script src="{url}/js"></script>'
        f'<base href="{url}/base"><meta http-equiv=refresh content="0;{url}/refresh"></head>'
        f'<body><img src="{url}/img"><iframe src="{url}/frame"></iframe>网页里的话。</body></html>',
        "b.md": f"![x]({url}/md) 文中的图。\n\n<img src={url}/inline>\n",
        "c.svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}/svg"/></svg>',
        "d.xml": f'<!DOCTYPE a SYSTEM "{url}/dtd" [<!ENTITY x SYSTEM "{url}/entity">]><a>&x;</a>',
        "e.txt": f"请访问 {url}/text 领取。\n",
        "linked.docx": linked.read_bytes(),
        "remote.docx": (folder / "remote.docx").read_bytes(),
    }


def test_no_address_in_a_document_is_requested(tmp_path: Path) -> None:
    with canary() as (url, paths), sample_server(tmp_path / "data") as sample:
        job = sample.upload(documents(url, tmp_path))
        states = {file["name"]: file["state"] for file in job["files"]}
        assert [states[name] for name in ("a.html", "b.md", "e.txt")] == ["added"] * 3
        sample.ask(f"{url}/question 是什么？")
        sample.ask("网页里的话是什么？")
        assert paths == []


def test_an_address_is_not_accepted_as_file_or_knowledge_base(tmp_path: Path) -> None:
    with canary() as (url, paths), sample_server(tmp_path / "data") as sample:
        for body in ({"url": f"{url}/x"}, {"name": url}, {"name": "x", "embedder": f"{url}/m"}):
            answer = sample.client.post("/knowledge-bases", json=body)
            assert answer.status_code in (404, 422)
        answer = sample.client.post("/knowledge-bases/mine/documents", json={"url": f"{url}/x"})
        assert answer.status_code == 422
        answer = sample.client.post(
            "/v1/chat/completions",
            json={"model": "mine", "messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": f"{url}/picture"}}]}]},
        )  # fmt: skip
        assert answer.status_code in (400, 422)
        assert paths == []


def test_the_canary_records_requests(tmp_path: Path) -> None:
    import httpx

    with canary() as (url, paths):
        httpx.get(f"{url}/x")
        assert paths == ["/x"]
