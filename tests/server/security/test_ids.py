"""Ids can't be guessed. Of files with one name that arrive at once, one wins, and it is complete."""

import threading
from pathlib import Path

from tests.server.servers import filled, work


def test_ids_are_random_and_of_each_its_own(tmp_path: Path) -> None:
    with filled(tmp_path) as mine:
        jobs, traces = set(), set()
        for _ in range(50):
            parts = [("files", ("a.txt", b"the same"))]
            jobs.add(mine.client.post("/knowledge-bases/mine/documents", files=parts).json()["id"])
            traces.add(mine.ask("试用期不得超过几个月？")["id"])
        for ids in (jobs, traces):
            assert len(ids) == 50
            # 24 hex digits that have nothing in common: 96 random bits.
            assert all(len(each) == 24 and int(each, 16) >= 0 for each in ids)
            assert all(len({each[place] for each in ids}) > 8 for place in range(24))


def test_uploads_of_one_name_at_once_are_each_whole(tmp_path: Path) -> None:
    """Nothing can be swapped between check and write, because bytes are stored under their digest."""
    texts = [f"第{number}个版本的全文。{number}\n" * 2000 for number in range(12)]
    with filled(tmp_path) as mine:
        statuses = []

        def send(text: str) -> None:
            parts = [("files", ("同名.txt", text.encode()))]
            answer = mine.client.post("/knowledge-bases/mine/documents", files=parts)
            statuses.append(answer.status_code)

        threads = [threading.Thread(target=send, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [202] * len(texts)
        work(mine.state)
        found = mine.documents()["同名.txt"]
        path = f"/knowledge-bases/mine/documents/{found['id']}/text"
        assert mine.client.get(path).json()["text"] in texts
        originals = mine.state.options.data / "mine" / "originals"
        kept = {file.read_bytes() for file in originals.iterdir()}
        assert kept & {text.encode() for text in texts} == {
            mine.client.get(path).json()["text"].encode()
        }  # what lost is swept
