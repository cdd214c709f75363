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
from tests.server.servers import Filled, filled

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
def mine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    with filled(tmp_path_factory.mktemp("outside") / "data") as full:
        yield full


def everything(folder: Path) -> set[Path]:
    """All files in and around the server's folder, except those that it changes itself."""
    return {p for p in folder.rglob("*") if "mine" not in p.parts and ".server" not in p.parts}


@pytest.mark.parametrize("name", TRAVERSALS, ids=lambda name: ascii(name)[:24])
def test_an_upload_lies_under_a_digest_whatever_it_is_called(mine: Filled, name: str) -> None:
    outside = everything(mine.state.options.data.parent)
    boundary = b"1234567890"
    said = name.encode().replace(b'"', b"%22").replace(b"\n", b"%0A")
    body = b"--%b\r\nContent-Disposition: form-data; name=\"files\"; filename=\"%b\"\r\n\r\n" % (
        boundary, said,
    ) + b"canary\r\n--%b--\r\n" % boundary  # fmt: skip
    kind = f"multipart/form-data; boundary={boundary.decode()}"
    answer = mine.client.post(
        "/knowledge-bases/mine/documents", content=body, headers={"Content-Type": kind}
    )
    assert answer.status_code in (202, 400, 422)
    assert everything(mine.state.options.data.parent) == outside
    originals = mine.state.options.data / "mine" / "originals"
    for file in originals.iterdir():
        assert len(file.name) == 64
        assert set(file.name) <= set("0123456789abcdef")
    if answer.status_code == 202:
        [told] = answer.json()["files"]
        assert "/" not in told["name"] or told["state"] == "refused"
        assert told["name"].isprintable()


@given(st.text())
def test_a_cleaned_name_is_one_part_and_stays_what_it_is(name: str) -> None:
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
def test_a_knowledge_bases_name_is_one_word(mine: Filled, name: str) -> None:
    outside = everything(mine.state.options.data.parent)
    answer = mine.client.post("/knowledge-bases", json={"name": name})
    assert answer.status_code in (400, 422), answer.text
    assert everything(mine.state.options.data.parent) == outside


@pytest.mark.parametrize("name", BASES, ids=ascii)
def test_no_route_leads_out_of_the_folder_by_a_name(mine: Filled, name: str) -> None:
    raw = quote(name, safe="").replace(".", "%2e")  # or the client would walk the path itself
    for path in (f"/knowledge-bases/{raw}", f"/knowledge-bases/{raw}/documents"):
        for method in ("GET", "DELETE"):
            answer = mine.client.request(method, path)
            assert answer.status_code in (404, 405, 422, 307), (method, path, answer.text)
    body = {"question": "x", "knowledge_base": name}
    assert mine.client.post("/ask", json=body).status_code in (404, 422)
    assert "poem.txt" in mine.documents()


@pytest.mark.parametrize(
    "document", ["../../../mine/kb", "%2e%2e", "0" * 23, "0" * 24 + "/..", "*"]
)
def test_no_route_leads_out_by_a_documents_id(mine: Filled, document: str) -> None:
    for rest in ("", "/text", "/pages/1"):
        path = f"/knowledge-bases/mine/documents/{quote(document, safe='%')}{rest}"
        assert mine.client.get(path).status_code in (404, 422)


@pytest.mark.parametrize(
    "path",
    ["/web/../app.py", "/web/%2e%2e/app.py", "/web/..%2fapp.py", "/web/%5c..%5capp.py", "/web//etc/passwd",
     "/web/....//app.py", "/web/app.js%00.py", "/web/"],
)  # fmt: skip
def test_the_pages_folder_is_all_that_is_served(mine: Filled, path: str) -> None:
    answer = mine.client.get(path)
    assert answer.status_code in (400, 404)
    assert "import" not in answer.text


def test_a_linked_folder_is_no_knowledge_base(mine: Filled, tmp_path: Path) -> None:
    """Whoever may write into the data folder, say through a share, can't make the server read
    elsewhere."""
    data = mine.state.options.data
    (data / "linked").symlink_to(data / "mine")
    (data / "half").mkdir()
    (data / "half" / "kb.sqlite").symlink_to(data / "mine" / "kb.sqlite")
    for name in ("linked", "half"):
        assert mine.client.get(f"/knowledge-bases/{name}").status_code == 404
        assert mine.client.delete(f"/knowledge-bases/{name}").status_code == 404
        with pytest.raises(NotFound):
            mine.state.knowledge_bases.path(name)
    listed = mine.client.get("/knowledge-bases").json()["knowledge_bases"]
    assert [base["name"] for base in listed] == ["mine"]


def test_an_original_that_became_a_link_is_not_drawn(mine: Filled, tmp_path: Path) -> None:
    job = mine.upload({"a.pdf": PDF})
    assert job["files"][0]["state"] == "added", job
    found = mine.documents()["a.pdf"]
    page = f"/knowledge-bases/mine/documents/{found['id']}/pages/1"
    assert mine.client.get(page).status_code == 200
    unseen = f"{page}?start=0&end=9"  # a picture that is not kept from before
    originals = mine.state.options.data / "mine" / "originals"
    [original] = [path for path in originals.iterdir() if path.read_bytes() == PDF]
    (tmp_path / "secret.pdf").write_bytes(PDF)
    original.unlink()
    original.symlink_to(tmp_path / "secret.pdf")
    assert mine.client.get(unseen).status_code == 404


@pytest.mark.parametrize("name", ["laws", "劳动法", "a-b_c", "2024"])
def test_usual_names_are_taken(name: str) -> None:
    assert check_name(name) == name


PDF = (Path(__file__).parents[2] / "data" / "documents" / "zh-toc-cid-font.pdf").read_bytes()
