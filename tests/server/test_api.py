"""The routes as a client uses them."""

import json
import re
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from ingest.chunk import Chunker
from ingest.files import FoundFile, digest, walk
from ingest.pipeline import Ingestion
from ingest.sandbox import Sandbox
from ingest.store import open_store
from ingest.types import Document, ParseReport
from rag.generate import Reply
from rag.types import Message, Sampling
from server.answering import UserQuestion
from server.models import Models
from server.state import ServerState
from server.uploads import Uploads
from tests.fakes import CopyingGenerator
from tests.server.servers import (
    LAW,
    POEM,
    SampleServer,
    WideEmbedder,
    options,
    run_jobs,
    run_server,
    sample_server,
    wait_for,
)

PDF = Path(__file__).parents[1] / "data" / "documents" / "zh-toc-cid-font.pdf"
QUESTION = "试用期不得超过几个月？"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SampleServer]:
    with sample_server(tmp_path_factory.mktemp("server")) as full:
        yield full


def events(text: str) -> list[tuple[str, dict]]:
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_citations_quote_the_text_of_the_document(sample: SampleServer) -> None:
    answer = sample.ask(QUESTION)
    assert not answer["refused"]
    for cited in answer["citations"]:
        path = f"/knowledge-bases/mine/documents/{cited['document']}/text"
        text = sample.client.get(path, params={"start": cited["start"], "end": cited["end"]}).json()
        assert text["text"] == cited["quote"]
        assert cited["name"] in sample.documents()
    assert "六个月" in answer["citations"][0]["quote"]


def test_a_streamed_answer_is_passages_then_text_then_citations(sample: SampleServer) -> None:
    body = {"question": QUESTION, "knowledge_base": "mine", "stream": True}
    first, *pieces, last = events(sample.client.post("/ask", json=body).text)
    assert first[0] == "passages"
    assert {name for name, _ in pieces} == {"text"}
    assert last[0] == "citations"
    assert "".join(data["text"] for _, data in pieces) == last[1]["answer"]
    whole = sample.ask(QUESTION)
    assert {**whole, "id": ""} == {**last[1], "id": ""}
    by_header = sample.client.post(
        "/ask", json={**body, "stream": False}, headers={"Accept": "text/event-stream"}
    )
    assert by_header.headers["content-type"].startswith("text/event-stream")


class PromptReader(CopyingGenerator):
    """Reads a prompt to a quarter, and further once `go_on` is set or it is stopped."""

    go_on = threading.Event()

    def stop(self) -> None:
        self.go_on.set()

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        self.on_read(0.25)
        assert self.go_on.wait(60)
        self.on_read(1.0)
        return (yield from super().stream(messages, sampling))


def test_a_stream_says_how_much_of_the_passages_the_model_has_read(tmp_path: Path) -> None:
    generator = PromptReader()
    body = {"question": QUESTION, "knowledge_base": "mine", "stream": True}
    with sample_server(tmp_path, generator=generator) as sample:
        with sample.client.stream("POST", "/ask", json=body) as response:
            names, text = [], ""
            for line in response.iter_lines():
                text += f"{line}\n"
                names += [line.removeprefix("event: ")] if line.startswith("event: ") else []
                if line.startswith("data: ") and names[-1] == "reading":
                    generator.go_on.set()
        assert [name for name, _ in groupby(names)] == ["passages", "reading", "text", "citations"]
        assert dict(events(text))["reading"] == {"share": 0.25}
        generator.go_on.clear()
        with sample.client.stream("POST", "/ask", json=body) as response:
            for line in response.iter_lines():
                if line == "event: reading":
                    break  # the client leaves while the model reads, which is stopped
        wait_for(lambda: sample.state.answerer.local_queue.running == 0)


def test_an_error_before_the_first_event_has_a_status(sample: SampleServer) -> None:
    body = {"question": "  ", "knowledge_base": "mine", "stream": True}
    answer = sample.client.post("/ask", json=body)
    assert answer.status_code == 422
    body["question"], body["knowledge_base"] = QUESTION, "none"
    answer = sample.client.post("/ask", json=body)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "there is no knowledge base none"


def test_a_refusal_is_in_the_readers_language(sample: SampleServer) -> None:
    body = {"question": "xyzzy plugh quux?", "knowledge_base": "mine"}
    (sample.state.options.data / "mine" / "rag.toml").write_text("[refuse]\nthreshold = 0.99\n")
    chinese = sample.client.post("/ask", json=body, headers={"Accept-Language": "zh-CN,zh;q=.9"})
    english = sample.client.post("/ask", json=body, headers={"Accept-Language": "en"})
    (sample.state.options.data / "mine" / "rag.toml").unlink()
    assert chinese.json()["refused"]
    assert chinese.json()["answer"].startswith("未找到")
    assert english.json()["answer"].startswith("Not found")
    assert english.json()["citations"] == []
    assert not sample.ask(QUESTION)["refused"]  # settings are looked at again each time


def test_a_follow_up_question_gets_its_subject_from_the_conversation(sample: SampleServer) -> None:
    history = [{"role": "user", "content": "Rust 多久发布一个新的稳定版本？"}]
    answer = sample.ask("那它的包管理器呢？", history=history)
    assert answer["question"] == "Rust 多久发布一个新的稳定版本？ 那它的包管理器呢？"


def test_search_returns_passages_best_first(sample: SampleServer) -> None:
    body = {"question": QUESTION, "knowledge_base": "mine", "limit": 2}
    found = sample.client.post("/search", json=body).json()
    assert found["hits"][0]["name"] == "劳动合同法.txt"
    assert len(found["hits"]) <= 2
    scores = [hit["score"] for hit in found["hits"]]
    assert scores == sorted(scores, reverse=True)


def test_a_question_is_asked_of_the_documents_in_scope(sample: SampleServer) -> None:
    everywhere = sample.ask(QUESTION)
    name, other = everywhere["citations"][0]["name"], "poem.txt"
    assert sample.ask(QUESTION, scope={"places": [name]})["answer"] == everywhere["answer"]
    refused = sample.ask(QUESTION, scope={"places": [other]})
    assert refused["refused"]
    assert other in refused["answer"]
    assert name in refused["answer"]  # where it is answered
    body = {"question": QUESTION, "knowledge_base": "mine", "scope": {"places": [other]}}
    hits = sample.client.post("/search", json=body).json()["hits"]
    assert {hit["name"] for hit in hits} == {other}


@pytest.mark.parametrize(
    ("scope", "status", "says"),
    [
        ({"places": ["none.pdf"]}, 404, "no document is in none.pdf"),
        ({"formats": ["xlsx"]}, 404, "no document there is of the format xlsx"),
        ({"since": "2025", "until": "2024"}, 404, "no day is since 2025 and until 2024"),
        ({"since": "tomorrow"}, 400, "'tomorrow' is no date"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_scope_without_documents_is_an_error(
    sample: SampleServer, scope: dict, status: int, says: str, stream: bool
) -> None:
    body = {"question": QUESTION, "knowledge_base": "mine", "scope": scope, "stream": stream}
    answer = sample.client.post("/ask", json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]


def test_an_answer_can_be_traced(sample: SampleServer) -> None:
    answer = sample.ask(QUESTION)
    trace = sample.client.get(f"/traces/{answer['id']}").json()
    assert trace["record"]["question"] == QUESTION
    assert trace["record"]["answer"]["answer"] == answer["answer"]
    assert trace["record"]["candidates"]
    assert sample.client.get(f"/traces/{'0' * 24}").status_code == 404


def test_documents_are_uploaded_listed_replaced_and_deleted(sample: SampleServer) -> None:
    job = sample.upload({"电话.txt": "仓库值班电话是 8012。\n", "坏.pdf": b"%PDF-1.4 cut off"})
    assert job["state"] == "done"
    states = {file["name"]: file for file in job["files"]}
    assert states["电话.txt"]["state"] == "added"
    assert states["电话.txt"]["receipt"]["encoding"] == "utf-8"
    assert states["坏.pdf"]["state"] == "refused"
    assert "坏.pdf" in states["坏.pdf"]["problem"]
    first = sample.documents()["电话.txt"]

    job = sample.upload({"电话.txt": "仓库值班电话是 9999。\n".encode("gb18030")})
    assert job["files"][0]["state"] == "changed"
    second = sample.documents()["电话.txt"]
    assert second["id"] != first["id"]
    assert second["receipt"]["encoding"] == "gb18030"
    assert "9999" in sample.ask("仓库值班电话是多少？")["answer"]

    path = f"/knowledge-bases/mine/documents/{second['id']}"
    originals = sample.state.options.data / "mine" / "originals"
    before = len(list(originals.iterdir()))
    trace = sample.ask("仓库值班电话是多少？")["id"]
    assert sample.client.delete(path).status_code == 204
    assert sample.client.get(path).status_code == 404
    assert sample.client.get(f"{path}/text").status_code == 404
    assert sample.client.delete(path).status_code == 404
    assert "电话.txt" not in sample.documents()
    assert len(list(originals.iterdir())) == before - 1
    assert sample.client.get(f"/traces/{trace}").status_code == 404
    found = sample.client.post(
        "/search", json={"question": "仓库值班电话", "knowledge_base": "mine", "limit": 50}
    )
    assert "9999" not in found.text
    run_jobs(sample.state)
    for cache in (sample.state.options.data / "mine").rglob("*"):
        assert not cache.is_file() or b"9999" not in cache.read_bytes()


def test_documents_are_found_by_a_part_of_their_name(sample: SampleServer) -> None:
    listing = sample.client.get("/knowledge-bases/mine/documents", params={"q": "劳动"}).json()
    assert [each["name"] for each in listing["documents"]] == ["劳动合同法.txt"]
    one = sample.client.get("/knowledge-bases/mine/documents", params={"limit": 1, "offset": 1})
    assert len(one.json()["documents"]) == 1
    assert one.json()["total"] == 3


def test_an_original_is_downloaded_but_never_shown(sample: SampleServer) -> None:
    page = b"<script>alert(1)</script><p>\xe6\x9f\x9c\xe5\x8f\xb0\xe5\x9c\xa8\xe4\xb8\x80\xe6\xa5\xbc\xe3\x80\x82</p>"
    sample.upload({"柜台.html": page})
    found = sample.documents()["柜台.html"]
    assert found["size"] == len(page)
    assert abs(found["added"] - time.time()) < 600
    answer = sample.client.get(f"/knowledge-bases/mine/documents/{found['id']}/file")
    assert answer.content == page
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    missing = sample.client.get(f"/knowledge-bases/mine/documents/{'0' * 24}/file")
    assert missing.status_code == 404

    # It is read again on demand, though its bytes are the same, and listed by size and date.
    job = sample.client.post("/knowledge-bases/mine/reread", json={"documents": [found["id"], "0" * 24]})
    assert job.status_code == 202
    run_jobs(sample.state)
    files = sample.client.get(f"/jobs/{job.json()['id']}").json()["files"]
    assert [(file["name"], file["state"]) for file in files] == [("柜台.html", "changed")]
    assert sample.documents()["柜台.html"]["id"] == found["id"]
    for sort in ("size", "added"):
        listed = sample.client.get("/knowledge-bases/mine/documents", params={"sort": sort}).json()
        values = [each[sort] for each in listed["documents"]]
        assert values == sorted(values, reverse=True)
    sample.client.delete(f"/knowledge-bases/mine/documents/{found['id']}")


def test_a_document_from_a_folder_has_the_date_when_it_was_read(sample: SampleServer, tmp_path: Path) -> None:
    (tmp_path / "柜台.txt").write_text("柜台在一楼。\n", "utf-8")
    with sample.state.knowledge_bases.open("mine") as pipeline, Sandbox(ocr=False) as sandbox:
        work = Ingestion(
            pipeline.store,
            pipeline.embedder,
            Chunker(pipeline.embedder.count_many, pipeline.embedder.max_tokens),
            sandbox,
        )
        assert [outcome.status for outcome in work.run(walk([tmp_path]))] == ["added"]
    found = sample.documents()["柜台.txt"]
    assert abs(found["added"] - time.time()) < 600
    assert found["size"] is None
    listed = sample.client.get("/knowledge-bases/mine/documents", params={"sort": "added"}).json()
    assert listed["documents"][0]["name"] == "柜台.txt"
    sample.client.delete(f"/knowledge-bases/mine/documents/{found['id']}")


def test_places_have_names_in_the_language_of_the_client(sample: SampleServer) -> None:
    rows = "".join(f"{number}号仓库,第{number}排\n" for number in range(1, 60))
    sample.upload({"仓库.csv": f"仓库,位置\n{rows}"})
    body = {"question": "40号仓库在第几排？", "knowledge_base": "mine"}
    labels = {
        language: sample.client.post("/search", json=body, headers={"accept-language": language})
        .json()["hits"][0]["label"]
        for language in ("en", "zh")
    }  # fmt: skip
    assert re.fullmatch(r"row \d+", labels["en"])
    assert labels["zh"] == labels["en"].replace("row ", "第 ") + " 行"
    asked = sample.client.post("/ask", json=body, headers={"accept-language": "zh"}).json()
    assert all(
        re.fullmatch(r"第 \d+ 行", each["label"]) for each in asked["hits"] if each["name"] == "仓库.csv"
    )
    sample.client.delete(f"/knowledge-bases/mine/documents/{sample.documents()['仓库.csv']['id']}")


def test_a_hit_has_the_number_of_its_page_in_every_language(tmp_path: Path) -> None:
    with sample_server(tmp_path) as sample:
        sample.upload({"law.pdf": PDF.read_bytes()})
        body = {"question": "关于敌情判断及八路军的战略部署", "knowledge_base": "mine"}
        for language, label in (("en", "p. 1"), ("zh", "第 1 页")):
            found = sample.client.post("/search", json=body, headers={"accept-language": language}).json()
            [first, *_] = [hit for hit in found["hits"] if hit["name"] == "law.pdf"]
            assert (first["page"], first["label"].split(" · ")[0]) == (1, label)
            assert all(hit["page"] is None for hit in found["hits"] if hit["name"].endswith(".txt"))


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/knowledge-bases", "GET, POST"), ("/knowledge-bases/mine", "DELETE, GET, PATCH"), ("/healthz", "GET")],
)
def test_a_wrong_method_is_answered_with_those_of_the_path(
    sample: SampleServer, path: str, methods: str
) -> None:
    answer = sample.client.put(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, methods)


def test_text_can_be_read_in_pieces(sample: SampleServer) -> None:
    path = f"/knowledge-bases/mine/documents/{sample.documents()['劳动合同法.txt']['id']}/text"
    whole = sample.client.get(path).json()
    assert whole["text"] == LAW
    pieces = [
        sample.client.get(path, params={"start": at, "end": at + 7}).json()["text"]
        for at in range(0, len(LAW), 7)
    ]
    assert "".join(pieces) == LAW
    assert sample.client.get(path, params={"start": 10**9}).json()["text"] == ""


def test_an_upload_of_the_same_bytes_changes_nothing(sample: SampleServer) -> None:
    job = sample.upload({"劳动合同法.txt": LAW})
    assert job["files"][0]["state"] == "unchanged"


def test_two_files_of_one_name_do_not_replace_each_other(sample: SampleServer) -> None:
    parts = [("files", ("twice.txt", b"one\n")), ("files", ("twice.txt", b"two\n"))]
    answer = sample.client.post("/knowledge-bases/mine/documents", files=parts)
    assert [file["state"] for file in answer.json()["files"]] == ["waiting", "refused"]
    run_jobs(sample.state)
    sample.client.delete(f"/knowledge-bases/mine/documents/{sample.documents()['twice.txt']['id']}")


def test_knowledge_bases_are_created_changed_and_deleted(sample: SampleServer) -> None:
    response = sample.client.post("/knowledge-bases", json={"name": "第二", "instruction": "简短回答。"})
    assert response.status_code == 201
    assert response.json()["instruction"] == "简短回答。"
    assert sample.client.post("/knowledge-bases", json={"name": "第二"}).status_code == 409
    names = [each["name"] for each in sample.client.get("/knowledge-bases").json()["knowledge_bases"]]
    assert names == ["mine", "第二"]
    changed = sample.client.patch("/knowledge-bases/第二", json={"instruction": ""})
    assert changed.json()["instruction"] == ""
    sample.upload({"a.txt": "只在第二个知识库里的话。\n"}, base="第二")
    assert "第二个" in sample.ask("只在哪里的话？", knowledge_base="第二")["answer"]
    assert sample.client.delete("/knowledge-bases/第二").status_code == 204
    assert sample.client.get("/knowledge-bases/第二").status_code == 404
    assert not (sample.state.options.data / "第二").exists()
    assert not [path for path in sample.state.options.data.iterdir() if path.name.startswith(".del")]


@pytest.mark.parametrize("wrong", [{"embedder": "evil/model"}, {"adapter": "../x"}])
def test_only_what_the_operator_offers_can_be_chosen(sample: SampleServer, wrong: dict) -> None:
    answer = sample.client.post("/knowledge-bases", json={"name": "new", **wrong})
    assert answer.status_code == 404
    assert "this server offers" in answer.json()["error"]["message"]
    assert not (sample.state.options.data / "new").exists()


def test_jobs_can_be_cancelled_and_listed(sample: SampleServer) -> None:
    parts = [("files", ("cancelled.txt", b"never read\n"))]
    job = sample.client.post("/knowledge-bases/mine/documents", files=parts).json()["id"]
    cancelled = sample.client.post(f"/jobs/{job}/cancel").json()
    assert cancelled["state"] == cancelled["files"][0]["state"] == "cancelled"
    run_jobs(sample.state)
    assert "cancelled.txt" not in sample.documents()
    listed = sample.client.get("/jobs", params={"knowledge_base": "mine"}).json()["jobs"]
    assert job in {each["id"] for each in listed}
    assert sample.client.get("/jobs", params={"knowledge_base": "none"}).json()["jobs"] == []


def test_metrics_count_requests_stages_and_refusals(sample: SampleServer) -> None:
    sample.ask(QUESTION)
    text = sample.client.get("/metrics").text
    assert 'rag_requests_total{method="POST",route="/ask",status="200"}' in text
    for stage in ("embed", "search", "retrieve", "extract"):
        assert f'rag_stage_seconds_count{{stage="{stage}"}}' in text
    assert 'rag_answers_total{outcome="answered"}' in text
    assert "rag_reading_waiting 0.0" in text
    assert "mine" not in text
    assert "试用期" not in text


def test_health_and_session_report_what_a_client_needs(sample: SampleServer) -> None:
    assert sample.client.get("/healthz").json() == {"status": "ok"}
    assert sample.client.get("/readyz").json() == {"status": "ready"}
    session = sample.client.get("/session").json()
    assert session["scopes"] == ["read", "write", "admin"]
    assert "pdf" in session["formats"]


def test_a_model_answers_with_the_bases_own_instruction(tmp_path: Path) -> None:
    generator = CopyingGenerator()
    with sample_server(tmp_path, generator=generator) as sample:
        answer = sample.ask(QUESTION, max_new_tokens=200)
        assert answer["generator"] == "copy"
        assert "六个月" in answer["answer"]
        sample.client.patch("/knowledge-bases/mine", json={"instruction": "{{7*7}} {x.__class__}"})
        trace = sample.client.get(f"/traces/{sample.ask(QUESTION)['id']}").json()
        assert generator.prompts[-1][-1].text.startswith("{{7*7}} {x.__class__}\n\n[1]")
        assert trace["record"]["prompt"][-1]["text"].startswith("{{7*7}}")


def test_a_file_of_the_command_line_is_shown_only_if_unchanged(sample: SampleServer, tmp_path: Path) -> None:
    from server.errors import NotFound
    from server.uploads import ingested_file

    file = tmp_path / "a.txt"
    file.write_text("读自命令行。\n", "utf-8")
    base = sample.state.knowledge_bases.path("mine")
    head = Document(FoundFile(file).source, "a", digest(file), ParseReport("pdf"))
    assert ingested_file(base, head) == file
    file.write_text("改过。\n", "utf-8")
    with pytest.raises(NotFound):
        ingested_file(base, head)
    assert not Uploads(base).path(head.digest).exists()


def test_a_busy_knowledge_base_answers_503_with_retry_after(
    sample: SampleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingest.store import atomic

    monkeypatch.setattr(atomic, "try_lock", lambda *_: (_ for _ in ()).throw(_busy()))
    document = sample.documents()["poem.txt"]["id"]
    answer = sample.client.delete(f"/knowledge-bases/mine/documents/{document}")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"


def _busy() -> Exception:
    from ingest.errors import Busy

    return Busy("mine is being written", zh="正在写入")


def test_the_wait_for_a_busy_knowledge_base_is_bounded() -> None:
    with pytest.raises(AssertionError):
        wait_for(lambda: False, 0.1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[retrieve\n", "mine/rag.toml is not valid TOML"),
        (b"[generate]\nadapter = 3\n", "mine/rag.toml: [generate] adapter is 3"),
        (b'prompt = "x"\n', "mine/rag.toml: prompt is"),
        (b"\xff\xfe", "mine/rag.toml is not UTF-8"),
    ],
)
def test_invalid_settings_are_reported_and_stay_unchanged(
    content: bytes, message: str, tmp_path: Path
) -> None:
    with sample_server(tmp_path) as sample:
        file = tmp_path / "mine" / "rag.toml"
        file.write_bytes(content)
        body = {"question": QUESTION, "knowledge_base": "mine"}
        answers = [
            sample.client.patch("/knowledge-bases/mine", json={"instruction": "简短回答。"}),
            sample.client.post("/ask", json=body),
            sample.client.post("/ask", json=body | {"temperature": 0.5}),
            sample.client.post("/search", json=body),
        ]
        for answer in answers:
            assert answer.status_code == 400
            assert answer.json()["error"]["message"].startswith(message)
            assert str(tmp_path) not in answer.text
        assert file.read_bytes() == content
        file.unlink()
        assert not sample.ask(QUESTION)["refused"]


def test_a_base_answers_with_its_own_adapter(tmp_path: Path) -> None:
    for name in ("law", "poems"):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        (tmp_path / "adapters" / name / "adapter_config.json").write_text("{}")
    generator = CopyingGenerator()
    with sample_server(tmp_path / "data", generator=generator, adapters=tmp_path / "adapters") as sample:
        other = {"name": "other", "adapter": "poems"}
        assert sample.client.post("/knowledge-bases", json=other).json()["adapter"] == "poems"
        changed = sample.client.patch("/knowledge-bases/mine", json={"adapter": "law"})
        assert changed.json()["adapter"] == "law"
        sample.upload({"a.txt": LAW}, base="other")
        used = []
        for base in ("mine", "other", "mine"):
            sample.ask(QUESTION, knowledge_base=base)
            used.append(generator.adapter)
        expected = [(tmp_path / "adapters" / name).resolve() for name in ("law", "poems", "law")]
        assert used == expected
        wrong = sample.client.patch("/knowledge-bases/mine", json={"adapter": "../adapters/law"})
        assert wrong.status_code == 404
        assert "this server offers: law, poems" in wrong.json()["error"]["message"]
        without = sample.client.patch("/knowledge-bases/mine", json={"adapter": ""})
        assert without.json()["adapter"] == ""
        sample.ask(QUESTION)
        assert generator.adapter is None


def test_a_delayed_deletion_spares_a_newer_version(sample: SampleServer) -> None:
    """Another process held the lock and replaced the document in the meantime."""
    old = sample.documents()["poem.txt"]["id"]
    answers = []
    path = f"/knowledge-bases/mine/documents/{old}"
    deleting = threading.Thread(target=lambda: answers.append(sample.client.delete(path)))
    with open_store(sample.state.options.data / "mine") as store:
        head = store.by_id(old)
        assert head
        with store.change() as change:
            deleting.start()
            time.sleep(0.5)  # it waits for the lock by now
            change.put(replace(head, digest="0" * 64))
        deleting.join()
        assert [answer.status_code for answer in answers] == [404]
        assert store.document(head.source)
    sample.upload({"poem.txt": POEM})


def test_a_broken_base_does_not_hide_the_others(tmp_path: Path) -> None:
    with sample_server(tmp_path) as sample:
        sample.client.post("/knowledge-bases", json={"name": "broken"})
        (tmp_path / "broken" / "rag.toml").write_text("[retrieve")
        listed = sample.client.get("/knowledge-bases").json()["knowledge_bases"]
        message = {each["name"]: each["problem"] for each in listed}
        assert message["mine"] is None
        assert message["broken"].startswith("broken/rag.toml is not valid TOML")


def test_two_bases_may_have_different_encoders(tmp_path: Path) -> None:
    class Wide(WideEmbedder):
        name, dim = "wide", 512

    class Narrow(WideEmbedder):
        name, dim = "narrow", 64

    response = {"wide": Wide(), "narrow": Narrow()}
    offered = options(tmp_path, embedders=("wide", "narrow"))
    models = Models(lambda options, reading: CopyingGenerator())
    with (
        closing(ServerState(offered, models, open_encoder=lambda name, backend: response[name])) as state,
        run_server(state) as client,
    ):
        for name, embedder in (("a", None), ("b", "narrow")):
            body = {"name": name} | ({"embedder": embedder} if embedder else {})
            assert client.post("/knowledge-bases", json=body).status_code == 201
        bases = client.get("/knowledge-bases").json()["knowledge_bases"]
        assert [each["embedder"] for each in bases] == ["wide", "narrow"]
        widths = []
        for name in ("a", "b"):
            body = {"model": name, "input": "试用期"}
            (vector,) = client.post("/v1/embeddings", json=body).json()["data"]
            widths.append(len(vector["embedding"]))
        assert widths == [512, 64]


def test_a_base_keeps_its_own_sampling_with_the_servers_model(tmp_path: Path) -> None:
    with sample_server(tmp_path, generator=CopyingGenerator()) as sample:
        (tmp_path / "mine" / "rag.toml").write_text("[generate]\ntemperature = 0.25\nseed = 9\n")
        with sample.state.knowledge_bases.open("mine") as pipeline:
            settings = UserQuestion(QUESTION, "mine", overrides={"max_new_tokens": 7}).sampling(pipeline)
        assert (settings.max_new_tokens, settings.temperature, settings.seed) == (7, 0.25, 9)
        assert sample.ask(QUESTION)["generator"] == "copy"


def test_a_base_without_adapter_uses_the_servers_model_again(tmp_path: Path) -> None:
    (tmp_path / "adapters" / "law").mkdir(parents=True)
    (tmp_path / "adapters" / "law" / "adapter_config.json").write_text("{}")
    generator = CopyingGenerator()
    with sample_server(tmp_path / "data", generator=generator, adapters=tmp_path / "adapters") as sample:
        file = tmp_path / "data" / "mine" / "rag.toml"
        sample.client.patch("/knowledge-bases/mine", json={"adapter": "law"})
        settings = tomllib.loads(file.read_text())["generate"]
        assert (settings["model"], settings["quant"]) == ("copy", "auto")
        sample.client.patch("/knowledge-bases/mine", json={"adapter": ""})
        assert tomllib.loads(file.read_text())["generate"] == {}


@pytest.mark.parametrize("name", ["𠀀" * 64, "a" * 65])
def test_a_name_that_no_folder_can_have_is_invalid(sample: SampleServer, name: str) -> None:
    assert sample.client.get(f"/knowledge-bases/{quote(name)}").status_code in (404, 422)
    answer = sample.client.post("/knowledge-bases", json={"name": name})
    assert answer.status_code in (400, 422)


def test_many_requests_at_slow_routes_do_not_delay_questions(tmp_path: Path) -> None:
    """Pages are drawn one at a time, and waiting requests occupy no thread of other routes."""
    with sample_server(tmp_path) as sample:
        sample.upload({"law.pdf": PDF.read_bytes()})
        document = sample.documents()["law.pdf"]["id"]
        address = f"{sample.client.base_url}/knowledge-bases/mine/documents/{document}/pages/1"
        statuses: list[int] = []
        crowd = [
            threading.Thread(target=lambda: statuses.append(httpx.get(address, timeout=60).status_code))
            for _ in range(60)
        ]
        with sample.state.pages._lock:  # as a page that takes long would
            for each in crowd:
                each.start()
            wait_for(lambda: sample.state.page_queue.waiting + sample.state.page_queue.running == 60)
            assert not sample.ask(QUESTION)["refused"]
            assert sample.client.get("/healthz").status_code == 200
            assert sample.documents()
        for each in crowd:
            each.join()
        assert statuses == [200] * 60
