"""Nothing is fetched: no address in a document, a name or a question is ever requested."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ingest.documents import package, paragraph, relations, word
from tests.server.servers import filled


@contextmanager
def canary() -> Iterator[tuple[str, list[str]]]:
    """A server that records its requests."""
    asked: list[str] = []

    class RecordingHandler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
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
        yield f"http://127.0.0.1:{server.server_port}", asked
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


def test_no_address_of_a_document_is_asked_for(tmp_path: Path) -> None:
    with canary() as (url, asked), filled(tmp_path / "data") as mine:
        job = mine.upload(documents(url, tmp_path))
        states = {file["name"]: file["state"] for file in job["files"]}
        assert [states[name] for name in ("a.html", "b.md", "e.txt")] == ["added"] * 3
        mine.ask(f"{url}/question 是什么？")
        mine.ask("网页里的话是什么？")
        assert asked == []


def test_an_address_is_no_file_and_no_knowledge_base(tmp_path: Path) -> None:
    with canary() as (url, asked), filled(tmp_path / "data") as mine:
        for body in ({"url": f"{url}/x"}, {"name": url}, {"name": "x", "embedder": f"{url}/m"}):
            answer = mine.client.post("/knowledge-bases", json=body)
            assert answer.status_code in (404, 422)
        answer = mine.client.post("/knowledge-bases/mine/documents", json={"url": f"{url}/x"})
        assert answer.status_code == 422
        answer = mine.client.post(
            "/v1/chat/completions",
            json={"model": "mine", "messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": f"{url}/picture"}}]}]},
        )  # fmt: skip
        assert answer.status_code in (400, 422)
        assert asked == []


def test_the_canary_sings(tmp_path: Path) -> None:
    import httpx

    with canary() as (url, asked):
        httpx.get(f"{url}/x")
        assert asked == ["/x"]
