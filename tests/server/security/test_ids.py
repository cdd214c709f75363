"""Ids can't be guessed. Of files with one name that arrive at once, one wins, and it is complete."""

import threading
from pathlib import Path

from tests.server.servers import run_jobs, sample_server


def test_ids_are_random_and_unique(tmp_path: Path) -> None:
    with sample_server(tmp_path) as sample:
        jobs, traces = set(), set()
        for _ in range(50):
            parts = [("files", ("a.txt", b"the same"))]
            jobs.add(sample.client.post("/knowledge-bases/mine/documents", files=parts).json()["id"])
            traces.add(sample.ask("试用期不得超过几个月？")["id"])
        for ids in (jobs, traces):
            assert len(ids) == 50
            # 24 hex digits that have nothing in common: 96 random bits.
            assert all(len(each) == 24 and int(each, 16) >= 0 for each in ids)
            assert all(len({each[position] for each in ids}) > 8 for position in range(24))


def test_simultaneous_uploads_with_one_name_do_not_mix(tmp_path: Path) -> None:
    """Nothing can be swapped between check and write, because bytes are stored under their digest."""
    texts = [f"第{number}个版本的全文。{number}\n" * 2000 for number in range(12)]
    with sample_server(tmp_path) as sample:
        statuses = []

        def send(text: str) -> None:
            parts = [("files", ("同名.txt", text.encode()))]
            answer = sample.client.post("/knowledge-bases/mine/documents", files=parts)
            statuses.append(answer.status_code)

        threads = [threading.Thread(target=send, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [202] * len(texts)
        run_jobs(sample.state)
        found = sample.documents()["同名.txt"]
        path = f"/knowledge-bases/mine/documents/{found['id']}/text"
        assert sample.client.get(path).json()["text"] in texts
        originals = sample.state.options.data / "mine" / "originals"
        contents = {file.read_bytes() for file in originals.iterdir()}
        assert contents & {text.encode() for text in texts} == {
            sample.client.get(path).json()["text"].encode()
        }  # what lost is swept
