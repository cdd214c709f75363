"""A small knowledge base of laws, a directory and a museum, in two languages."""

from pathlib import Path

from ingest.chunk import Chunker, ChunkOptions
from ingest.files import walk
from ingest.i18n import Translator
from ingest.pipeline import Ingestion
from ingest.store import Identity, open_store
from rag.config import Config
from rag.load import score_norm_of
from rag.pipeline import Pipeline
from rag.retrieve import RetrieveOptions
from tests.fakes import HashEmbedder, TextParser

DOCUMENTS = {
    "劳动合同法.txt": (
        "第一条 为了保护劳动者的合法权益，构建和谐的劳动关系，制定本法。\n"
        "第十条 建立劳动关系，应当订立书面劳动合同。\n"
        "第十三条 固定期限劳动合同，是指约定合同终止时间的劳动合同。\n"
        "第十七条 劳动合同应当具备以下条款：\n（一）劳动合同期限；\n（二）工作内容；\n（三）劳动报酬。\n"
        "第十九条 劳动合同期限三个月以上不满一年的，试用期不得超过一个月。\n"
        "第二十条 劳动者在试用期的工资不得低于约定工资的百分之八十。\n"
        "第三十七条 劳动者提前三十日以书面形式通知用人单位，可以解除劳动合同。\n"
        "第四十四条 用人单位被依法宣告破产的，劳动合同终止。\n"
    ),
    "居民身份证法.txt": (
        "第一条 为了证明公民的身份，保障公民的合法权益，制定本法。\n"
        "第五条 未满十六周岁的公民，自愿申请领取居民身份证的，发给有效期五年的居民身份证。\n"
        "第六条 居民身份证式样由国务院公安部门制定。\n"
        "第七条 公民应当自年满十六周岁之日起三个月内，向户口所在地的公安机关申请领取居民身份证。\n"
        "第十二条 公安机关应当自公民提交申请之日起六十日内发放居民身份证。\n"
        "第二十条 人民警察泄露公民个人信息的，依法给予处分。\n"
    ),
    "通讯录.txt": (
        "| 姓名 | 分机号 | 部门 |\n| --- | --- | --- |\n| 张三 | 8012 | 财务部 |\n"
        "| 李四 | 8013 | 法务部 |\n| 王五 | 8014 | 采购部 |\n| 赵六 | 8015 | 市场部 |\n"
    ),
    "museum.txt": (
        "The Harbour Museum is a public collection of ships and maps.\n\n"
        "The Harbour Museum was founded in 1921.\n\n"
        "The northern warehouse has twelve loading docks.\n\n"
        "The reading room is open to members on weekdays.\n"
    ),
    "山川.txt": (
        "五指山是海南岛最高的一座山。五指山海拔约一千八百六十七米。\n\n"
        "太湖是江苏省面积最大的一个淡水湖。太湖的平均深度约为二米。\n\n"
        "青海湖是我国面积最大的一个咸水湖。\n"
    ),
}


def ingest(folder: Path, documents: dict[str, str] = DOCUMENTS) -> Path:
    """The folder of the knowledge base."""
    docs = folder / "docs"
    docs.mkdir(parents=True)
    for name, text in documents.items():
        (docs / name).write_text(text, "utf-8")
    embedder = HashEmbedder()
    chunker = Chunker(embedder.count_many, embedder.max_tokens, ChunkOptions(60, 140, 30))
    with open_store(folder / "kb", create=Identity(embedder.name, embedder.dim)) as store:
        list(Ingestion(store, embedder, chunker, TextParser()).run(walk([docs])))
    return folder / "kb"


def open_base(path: Path, passages: int = 3) -> Pipeline:
    embedder, store = HashEmbedder(), open_store(path)
    norm = score_norm_of(store, embedder)
    config = Config(retrieve=RetrieveOptions(passages=passages))
    return Pipeline(store, embedder, norm, Translator("zh"), config)
