"""The commands as a person types them, each in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.store import open_store
from tests import commands
from tests.rag.chatglm.golden import COPY

LAW = """# 劳动合同法

## 第二章 劳动合同的订立

第十条 建立劳动关系，应当订立书面劳动合同。

第十九条 三年以上固定期限和无固定期限的劳动合同，试用期不得超过六个月。同一用人单位与同一劳动者只能约定一次试用期。

第二十条 劳动者在试用期的工资不得低于本单位相同岗位最低档工资的百分之八十。
"""
RUST = """# Cargo

Cargo 是 Rust 的构建系统和包管理器。使用 cargo new 可以创建项目。

Rust 每六周发布一个新的稳定版本。
"""
Rag = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def rag(home: Path) -> Rag:
    """Runs `rag` with its data in `home`; the encoder's cache is the user's own."""

    def run(*words: str, stdin: str = "", locale: str = "C.UTF-8") -> subprocess.CompletedProcess[str]:
        environment = {"XDG_DATA_HOME": str(home / "data"), "LC_ALL": locale}
        return commands.rag(*words, environment=environment, stdin=stdin)

    return run


@pytest.fixture(scope="module")
def docs(home: Path) -> Path:
    folder = home / "docs"
    folder.mkdir()
    (folder / "劳动合同法.md").write_text(LAW, "utf-8")
    (folder / "cargo.txt").write_bytes(RUST.encode("gb18030"))
    return folder


@pytest.fixture(scope="module")
def kb(rag: Rag, docs: Path) -> str:
    done = rag("ingest", str(docs), "--kb", "demo")
    assert done.returncode == 0, done.stderr
    return "demo"


def test_ingest_tells_what_it_did(rag: Rag, docs: Path, kb: str) -> None:
    done = rag("ingest", str(docs), "--kb", "fresh", "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {Path(record["source"]).name: record["status"] for record in records} == {
        "cargo.txt": "added",
        "劳动合同法.md": "added",
    }
    [cargo] = [record for record in records if record["source"].endswith("cargo.txt")]
    assert cargo["receipt"]["encoding"] == "gb18030"
    assert cargo["receipt"]["replaced"] == 0
    again = rag("ingest", str(docs), "--kb", "fresh", "--json")
    assert {json.loads(line)["status"] for line in again.stdout.splitlines()} == {"unchanged"}


def test_an_answer_quotes_its_source_exactly(rag: Rag, home: Path, kb: str) -> None:
    done = rag("ask", "试用期最长几个月？", "--kb", kb, "--json")
    answer = json.loads(done.stdout)
    assert not answer["refused"]
    assert "六个月" in answer["citations"][0]["quote"]
    with open_store(home / "data" / "chatglm-rag" / kb) as store:
        for citation in answer["citations"]:
            text = store.text(citation["document"], citation["start"], citation["end"])
            assert text == citation["quote"]


def test_a_question_in_english_finds_the_chinese_document(rag: Rag, kb: str) -> None:
    done = rag("ask", "--quiet", "--kb", kb, stdin="What is Cargo?\n")
    assert "构建系统和包管理器" in done.stdout


def test_what_the_documents_do_not_tell_is_refused(rag: Rag, kb: str) -> None:
    answer = json.loads(rag("ask", "珠穆朗玛峰有多高？", "--kb", kb, "--json").stdout)
    assert answer["refused"]
    assert answer["citations"] == []
    assert answer["hits"]


def test_chat_clears_and_stops(rag: Rag, kb: str) -> None:
    lines = "试用期最长几个月？\n那工资呢？\n\nclear\nstop\n试用期？\n"
    done = rag("chat", "--kb", kb, stdin=lines)
    assert done.returncode == 0
    assert "百分之八十" in done.stdout
    assert done.stdout.rstrip().endswith("Conversation cleared.")


@pytest.mark.parametrize("quits", ["exit", "/quit", "退出"])
def test_chat_knows_its_commands_and_courtesies(rag: Rag, kb: str, quits: str) -> None:
    done = rag("chat", "--kb", kb, stdin=f"试用期最长几个月？\n谢谢\n/help\n{quits}\n试用期最长几个月？\n")
    assert done.returncode == 0
    assert done.stdout.count("六个月") == 1
    assert "You are welcome. You can ask about: cargo.txt, 劳动合同法.md." in done.stdout
    assert done.stdout.count("`exit` quits") == 2


def test_search_lists_passages(rag: Rag, kb: str) -> None:
    done = rag("search", "稳定版本", "--kb", kb, "--json", "--limit", "1")
    [hit] = json.loads(done.stdout)["hits"]
    assert "每六周" in hit["text"]


def test_the_life_of_a_knowledge_base(rag: Rag, home: Path, docs: Path) -> None:
    assert rag("ingest", str(docs), "--kb", "life", "--quiet").returncode == 0
    assert "life" in rag("kb", "list").stdout
    assert rag("kb", "verify", "--kb", "life").returncode == 0
    snapshot = str(home / "life.snapshot")
    assert rag("kb", "snapshot", snapshot, "--kb", "life").returncode == 0
    assert rag("kb", "remove", str(docs / "cargo.txt"), "--kb", "life").returncode == 0
    sources = json.loads(rag("kb", "info", "--kb", "life", "--json").stdout)["sources"]
    assert [Path(source).name for source in sources] == ["劳动合同法.md"]
    assert rag("kb", "rebuild", "--kb", "life").returncode == 0
    assert rag("kb", "restore", snapshot, "--kb", "back").returncode == 0
    assert len(json.loads(rag("kb", "info", "--kb", "back", "--json").stdout)["sources"]) == 2


def test_a_command_about_a_knowledge_base_takes_it_with_or_without_its_option(
    rag: Rag, home: Path, kb: str
) -> None:
    snapshot = str(home / "named.snapshot")
    for words in (["info"], ["verify"], ["rebuild"], ["snapshot", snapshot]):
        Path(snapshot).unlink(missing_ok=True)
        plain, both = rag("kb", *words, kb), rag("kb", *words, kb, "--kb", "another")
        assert plain.returncode == 0, plain.stderr
        assert both.returncode == 1
        assert both.stderr == f"rag: KB is {kb} and --kb is another; give one of them\n"
    assert rag("kb", "restore", snapshot, "named").returncode == 0
    assert rag("kb", "info", "named", "--kb", "named").returncode == 0
    done = rag("kb", "calibrate", "nowhere", kb, "--kb", "another", locale="zh_CN.UTF-8")
    assert done.stderr == f"rag：参数 KB 为 {kb}，而 --kb 为 another；请只给其中之一\n"


def test_the_environment_chooses_where_nothing_is_typed(home: Path, kb: str) -> None:
    environment = {**os.environ, "XDG_DATA_HOME": str(home / "data"), "RAG_KB": "another"}
    command = [sys.executable, "-c", "from rag.cli.app import main; main()", "kb", "verify"]
    for words, code in (([], 1), ([kb], 0), (["--kb", kb], 0)):
        done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ingest", "nowhere"], "nowhere"),
        (["ask", "为什么？", "--kb", "nothing"], "no knowledge base 'nothing'"),
        (["ask", "", "--kb", "demo"], "question is empty"),
        (["ask", "长" * 10_000, "--kb", "demo"], "10000 characters"),
        (["kb", "remove", "劳动合同发.md", "--kb", "demo"], "劳动合同法.md"),
        (["kb", "restore", "nowhere.zip", "--kb", "new"], "nowhere.zip"),
        (["eval", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_ends_in_one_line(rag: Rag, kb: str, words: list[str], says: str) -> None:
    done = rag(*words)
    assert done.returncode == 1, done.stderr
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_mistakes_are_told_in_chinese_to_a_chinese_reader(rag: Rag, kb: str) -> None:
    done = rag("ask", "为什么？", "--kb", "nothing", locale="zh_CN.UTF-8")
    assert "没有知识库" in done.stderr


def test_settings_name_their_nearest_neighbour(rag: Rag, home: Path, kb: str) -> None:
    settings = home / "data" / "chatglm-rag" / kb / "rag.toml"
    settings.write_text("[retrieve]\npasages = 3\n")
    done = rag("ask", "为什么？", "--kb", kb)
    settings.unlink()
    assert done.returncode == 1
    assert "passages" in done.stderr


def test_refusals_can_be_set_and_fitted(rag: Rag, home: Path, kb: str) -> None:
    settings = home / "data" / "chatglm-rag" / kb / "rag.toml"
    settings.write_text("[refuse]\nthreshold = 0\n")
    brave = json.loads(rag("ask", "珠穆朗玛峰有多高？", "--kb", kb, "--json").stdout)
    settings.unlink()
    assert not brave["refused"]
    questions = home / "set"
    (questions / "docs").mkdir(parents=True)
    (questions / "docs" / "a.md").write_text(LAW, "utf-8")
    rows = [
        {"id": "1", "question": "试用期最长几个月？", "answers": ["六个月"], "answerable": True,
         "gold": [{"document": "a.md", "quote": "试用期不得超过六个月"}]},
        {"id": "2", "question": "珠穆朗玛峰有多高？", "answers": [], "answerable": False, "gold": []},
    ]  # fmt: skip
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (questions / "questions.jsonl").write_text(lines, "utf-8")
    done = rag("kb", "calibrate", str(questions), "--kb", kb)
    assert done.returncode == 0, done.stderr
    assert json.loads(rag("ask", "珠穆朗玛峰有多高？", "--kb", kb, "--json").stdout)["refused"]
    assert not json.loads(rag("ask", "试用期最长几个月？", "--kb", kb, "--json").stdout)["refused"]


OPENING = """
import sys
from pathlib import Path
from ingest.normalize import terms, words
from rag.config import Config
from ingest.i18n import Translator
from rag.load import open_pipeline

with open_pipeline(Config(Path(sys.argv[1])), cache=Path(sys.argv[2]), say=Translator("en")) as pipeline:
    pipeline.store.search_words(terms("What is Cargo?"), 5)
    assert "rjieba" not in sys.modules
    assert words("试用期 cargo") == ["试用", "试用期", "cargo"]
    assert "rjieba" in sys.modules
"""


def test_the_dictionary_of_words_is_loaded_when_chinese_is_cut(home: Path, kb: str) -> None:
    place, cache = home / "data" / "chatglm-rag" / kb, Path.home() / ".cache" / "chatglm-rag"
    done = subprocess.run(
        [sys.executable, "-c", OPENING, str(place), str(cache)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_early_is_no_error(rag: Rag, kb: str) -> None:
    code = "import sys; sys.path[:0] = ['.']; from rag.cli.app import main; main()"
    words = [sys.executable, "-c", code, "kb", "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.close()
        assert process.stderr
        assert b"Traceback" not in process.stderr.read()


HIDDEN = """
import sys
from importlib.machinery import PathFinder

hidden, find = sys.argv.pop(1), PathFinder.find_spec.__func__

def spec(cls, name, *rest):
    return None if name.partition(".")[0] == hidden else find(cls, name, *rest)

PathFinder.find_spec = classmethod(spec)
from rag.cli.app import main
main()
"""


@pytest.mark.parametrize(
    ("package", "extra", "words"),
    [
        ("torch", "generate", ["doctor", "--model", "m"]),
        ("torch", "finetune", ["finetune", "train", "a.json", "--model", "m", "--out", "o"]),
        ("peft", "finetune", ["finetune", "train", "a.json", "--model", "m", "--out", "o"]),
        ("openai", "endpoint", ["doctor", "--model", "http://127.0.0.1:1"]),
        ("pyarrow", "finetune", ["finetune", "train", "a.json", "--model", "m", "--out", "o"]),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(
    package: str, extra: str, words: list[str], tmp_path: Path
) -> None:
    """With a package hidden, as after a plain `pip install chatglm-rag`."""
    shutil.copytree(COPY / "v3" / "tiny_safetensors", tmp_path / "m")
    (tmp_path / "a.json").write_text('[{"instruction": "问", "output": "答"}]', "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN, package, *words], cwd=tmp_path, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"rag: this needs {package}, which is not installed; run: pip install 'chatglm-rag[{extra}]'"
    )


READS = """
import sys
reads = []
sys.addaudithook(lambda event, args: event == "open" and str(args[0]).endswith("rag.toml")
    and reads.append(args[0]))
from rag.cli.app import main
try:
    main()
finally:
    sys.stderr.write(f"reads: {len(reads)}")
"""


@pytest.mark.parametrize("words", ["ask QUESTION --json", "chat", "ingest DOCS", "kb info"])
def test_a_command_reads_the_settings_once(home: Path, docs: Path, kb: str, words: str) -> None:
    settings = home / "data" / "chatglm-rag" / kb / "rag.toml"
    settings.write_text("[retrieve]\npassages = 3\n", "utf-8")
    words = words.replace("QUESTION", "试用期最长几个月？").replace("DOCS", str(docs))
    environment = {**os.environ, "XDG_DATA_HOME": str(home / "data"), "RAG_KB": kb}
    done = subprocess.run(
        [sys.executable, "-c", READS, *words.split()],
        input="试用期最长几个月？\nstop\n", capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    settings.unlink()
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("reads: 1")
