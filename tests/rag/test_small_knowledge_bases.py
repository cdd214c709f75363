"""Knowledge bases of a few chunks: answers are found, other questions refused, exact codes first."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.i18n import Translator
from ingest.pipeline import FileOutcome, Reading, divide, embed, write
from ingest.types import Document, ParseReport, Segment
from rag.config import read_config
from rag.load import open_pipeline, open_writer
from rag.pipeline import Pipeline

NOTES = [
    "年假为每年十五天。",
    "晚餐在食堂二楼供应，每份十二元，晚上六点开始。",
    "会议室预订请联系行政部李红，分机8021。",
    "服务器每周日凌晨两点备份，保存三十天。",
    "公司班车七点半从东门出发。",
]
STORES = [f"第{n}号仓库面积{n * 37 + 100}平方米，电话{8000 + n}。" for n in range(45)]
CODES = "E101：输出过流，检查电机接线。\nE110：通讯超时，检查终端电阻。\nE111：参数存储失败，更换主控板。"
RULES = (
    "第十二条 业主委员会每届任期不超过五年。\n\n第十二条之一 委员不再是业主的，其资格自行终止。\n\n"
    "第十三条 物业服务人不得擅自停水、停电。\n\n第三十二条 违反第十三条规定的，处一万元罚款。"
)


def knowledge_base(folder: Path, cache: Path, texts: list[str]) -> Pipeline:
    config = read_config(folder, folder / "none")
    with (writer := open_writer(config, embedder=None, cache=cache)).store as store:
        readings = []
        for number, text in enumerate(texts):
            document = Document(f"{number}.txt", "", str(number), ParseReport("txt"))
            parts = divide(document, [Segment(text)], writer.chunker)
            readings.append(Reading(FileOutcome(document.source, "added"), parts))

        def embedding(parts):
            return embed(parts, store.known_vectors, writer.embedder, lambda chunks: None)

        assert all(not outcome.problem for outcome in write(readings, store, embedding))
    return open_pipeline(config, cache=cache, say=Translator("en"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def base(tmp_path: Path, cache: Path) -> Iterator:
    opened: list[Pipeline] = []

    def make(texts: list[str]) -> Pipeline:
        opened.append(knowledge_base(tmp_path, cache, texts))
        return opened[-1]

    yield make
    for pipeline in opened:
        pipeline.close()


@pytest.mark.parametrize("chunks", [1, 2, 5, 10, 50])
def test_few_chunks_answer_what_they_hold_and_nothing_else(base, chunks: int) -> None:
    pipeline = base([*NOTES, *STORES][:chunks])
    answer = pipeline.ask("年假有几天？")
    assert not answer.refused
    assert "十五天" in answer.text
    for question in ("谁写了红楼梦？", "发动机的功率是多少？", "合同的违约金怎么计算？"):
        assert pipeline.ask(question).refused
    if chunks > 1:
        assert "十二元" in pipeline.ask("晚餐多少钱一份？").text


def test_exact_codes_come_first_and_others_are_refused(base) -> None:
    pipeline = base([CODES])
    assert "通讯超时" in pipeline.ask("E110 是什么故障？").text.split("\n")[0]
    assert pipeline.ask("E999 是什么故障？").refused


def test_articles_by_their_number(base) -> None:
    pipeline = base([RULES])
    assert "资格自行终止" in pipeline.ask("第十二条之一的内容是什么？").text.split("\n")[0]
    assert "停水" in pipeline.ask("第13条是什么？").text.split("\n")[0]
