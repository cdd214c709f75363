"""Names of files, knowledge bases and documents are never used as paths."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import UserError
from server.errors import NotFound
from server.knowledge_bases import check_name
from server.uploads import clean_name
from tests.server.servers import SampleServer, sample_server

TRAVERSALS = [
    "../x.txt", "..\\x.txt", "../../../../tmp/x.txt", "/etc/x.txt", "C:\\x.txt", "\\\\host\\x.txt",
    "x\0.txt", "..%2fx.txt", "%2e%2e/x.txt", "..%5cx.txt", "....//x.txt", "．．／x.txt", "..∕x.txt",
    "..⧵x.txt", "..＼x.txt", "a/./x.txt", "file:///etc/x.txt", "~/x.txt", "x.txt/..", "x.txt\n.txt",
    "con.txt", "a\u202etxt.exe.txt", ".htaccess.txt", "-rf.txt", "x" * 5000 + ".txt", ".", "..", "/",
]  # fmt: skip
BASES = [
    "..", ".", "../mine", "..\\mine", "/etc", "C:\\", "mine/../mine", "mine\0", "%2e%2e", ".server",
    "．．", "mine／..", "m∕x", "x" * 65, "a b", "a\n", "ｍine", "", "mine.", "con:",
]  # fmt: skip


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SampleServer]:
    with sample_server(tmp_path_factory.mktemp("outside") / "data") as full:
        yield full


def foreign_files(folder: Path) -> set[Path]:
    """All files in and around the server's folder, except those that it changes itself."""
    return {p for p in folder.rglob("*") if "mine" not in p.parts and ".server" not in p.parts}


@pytest.mark.parametrize("name", TRAVERSALS, ids=lambda name: ascii(name)[:24])
def test_an_upload_is_stored_under_its_digest_whatever_its_name(sample: SampleServer, name: str) -> None:
    outside = foreign_files(sample.state.options.data.parent)
    boundary = b"1234567890"
    header_name = name.encode().replace(b'"', b"%22").replace(b"\n", b"%0A")
    body = b"--%b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"%b\"\r\n\r\n" % (
        boundary, header_name,
    ) + b"canary\r\n--%b--\r\n" % boundary  # fmt: skip
    kind = f"multipart/form-data; boundary={boundary.decode()}"
    answer = sample.client.post(
        "/knowledge-bases/mine/documents", content=body, headers={"Content-Type": kind}
    )
    assert answer.status_code in (202, 400, 422)
    assert foreign_files(sample.state.options.data.parent) == outside
    originals = sample.state.options.data / "mine" / "originals"
    for file in originals.iterdir():
        assert len(file.name) == 64
        assert set(file.name) <= set("0123456789abcdef")
    if answer.status_code == 202:
        [file_status] = answer.json()["files"]
        assert "/" not in file_status["name"] or file_status["state"] == "refused"
        assert file_status["name"].isprintable()


@given(st.text())
def test_a_clean_name_is_one_path_component_and_stays_the_same(name: str) -> None:
    try:
        cleaned = clean_name(name)
    except UserError:
        return
    assert Path(cleaned).name == cleaned
    assert cleaned not in (".", "..")
    assert not set(cleaned) & set("/\\\0\n\u202e／＼")
    assert clean_name(cleaned) == cleaned
    assert len(os.fsencode(cleaned)) <= 255


@pytest.mark.parametrize("name", BASES, ids=ascii)
def test_a_knowledge_bases_name_is_one_word(sample: SampleServer, name: str) -> None:
    outside = foreign_files(sample.state.options.data.parent)
    answer = sample.client.post("/knowledge-bases", json={"name": name})
    assert answer.status_code in (400, 422), answer.text
    assert foreign_files(sample.state.options.data.parent) == outside


@pytest.mark.parametrize("name", BASES, ids=ascii)
def test_no_name_leads_out_of_the_data_folder(sample: SampleServer, name: str) -> None:
    raw = quote(name, safe="").replace(".", "%2e")  # or the client would walk the path itself
    for path in (f"/knowledge-bases/{raw}", f"/knowledge-bases/{raw}/documents"):
        for method in ("GET", "DELETE"):
            answer = sample.client.request(method, path)
            assert answer.status_code in (404, 405, 422, 307), (method, path, answer.text)
    body = {"question": "x", "knowledge_base": name}
    assert sample.client.post("/ask", json=body).status_code in (404, 422)
    assert "poem.txt" in sample.documents()


@pytest.mark.parametrize("document", ["../../../mine/kb", "%2e%2e", "0" * 23, "0" * 24 + "/..", "*"])
def test_no_document_id_leads_out_of_the_data_folder(sample: SampleServer, document: str) -> None:
    for rest in ("", "/text", "/pages/1"):
        path = f"/knowledge-bases/mine/documents/{quote(document, safe='%')}{rest}"
        assert sample.client.get(path).status_code in (404, 422)


@pytest.mark.parametrize(
    "path",
    ["/web/../app.py", "/web/%2e%2e/app.py", "/web/..%2fapp.py", "/web/%5c..%5capp.py", "/web//etc/passwd",
     "/web/....//app.py", "/web/app.js%00.py", "/web/"],
)  # fmt: skip
def test_only_the_folder_of_the_page_is_served(sample: SampleServer, path: str) -> None:
    answer = sample.client.get(path)
    assert answer.status_code in (400, 404)
    assert "import" not in answer.text


def test_a_symbolic_link_is_not_a_knowledge_base(sample: SampleServer, tmp_path: Path) -> None:
    """Whoever may write into the data folder, say through a share, can't make the server read
    elsewhere."""
    data = sample.state.options.data
    (data / "linked").symlink_to(data / "mine")
    (data / "half").mkdir()
    (data / "half" / "kb.sqlite").symlink_to(data / "mine" / "kb.sqlite")
    for name in ("linked", "half"):
        assert sample.client.get(f"/knowledge-bases/{name}").status_code == 404
        assert sample.client.delete(f"/knowledge-bases/{name}").status_code == 404
        with pytest.raises(NotFound):
            sample.state.knowledge_bases.path(name)
    listed = sample.client.get("/knowledge-bases").json()["knowledge_bases"]
    assert [base["name"] for base in listed] == ["mine"]


def test_an_upload_that_became_a_link_is_not_drawn(sample: SampleServer, tmp_path: Path) -> None:
    job = sample.upload({"a.pdf": PDF})
    assert job["files"][0]["state"] == "added", job
    found = sample.documents()["a.pdf"]
    page = f"/knowledge-bases/mine/documents/{found['id']}/pages/1"
    assert sample.client.get(page).status_code == 200
    unseen = f"{page}?start=0&end=9"  # a picture that is not kept from before
    originals = sample.state.options.data / "mine" / "originals"
    [original] = [path for path in originals.iterdir() if path.read_bytes() == PDF]
    (tmp_path / "secret.pdf").write_bytes(PDF)
    original.unlink()
    original.symlink_to(tmp_path / "secret.pdf")
    assert sample.client.get(unseen).status_code == 404


@pytest.mark.parametrize("name", ["laws", "劳动法", "a-b_c", "2024"])
def test_ordinary_names_are_accepted(name: str) -> None:
    assert check_name(name) == name


PDF = (Path(__file__).parents[2] / "data" / "documents" / "zh-toc-cid-font.pdf").read_bytes()
