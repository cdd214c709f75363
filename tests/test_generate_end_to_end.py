"""A folder of files to an answer that a trained ChatGLM wrote from its passages, with citations."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ingest.chunk import Chunker, ChunkOptions
from ingest.files import walk
from ingest.i18n import Translator
from ingest.pipeline import Ingestion
from ingest.store import Identity, open_store
from rag.chatglm.generator import ChatGLMGenerator, open_generator
from rag.config import Config
from rag.generate import GenerateOptions, LazyGenerator
from rag.load import score_norm_of
from rag.pipeline import Pipeline
from rag.retrieve import RetrieveOptions
from rag.score_norm import Calibration, Curve
from rag.types import NOT_FOUND, Answer, Message, Sampling
from tests import commands
from tests.fakes import HashEmbedder, TextParser
from tests.rag.chatglm.adapters import linears, tensors, write
from tests.tiny import FACTORIES, MOST, TITLE, fact, numbers, question, row

GREEDY = Sampling(max_new_tokens=30, temperature=0)
NUMBERS = numbers(8)
UNKNOWN = FACTORIES[8]
NEVER = Curve(0.98, -1.35, 0.0)


@pytest.fixture(scope="module")
def generator(tiny: Path) -> ChatGLMGenerator:
    return open_generator(tiny, quant="none")


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each factory."""
    folder = tmp_path_factory.mktemp("docs")
    for name, number in NUMBERS.items():
        (folder / name).mkdir()
        (folder / name / f"{TITLE}.txt").write_text(fact(name, number) + "\n", "utf-8")
    return folder


@pytest.fixture
def pipeline(tmp_path: Path, docs: Path, generator: ChatGLMGenerator) -> Iterator[Pipeline]:
    embedder = HashEmbedder()
    chunker = Chunker(embedder.count_many, embedder.max_tokens, ChunkOptions(60, 100, 20))
    with open_store(tmp_path / "kb", create=Identity(embedder.name, embedder.dim)) as store:
        list(Ingestion(store, embedder, chunker, TextParser()).run(walk([docs])))
        yield Pipeline(
            store,
            embedder,
            score_norm_of(store, embedder),
            Translator("zh"),
            Config(
                retrieve=RetrieveOptions(passages=MOST),
                generate=GenerateOptions(max_new_tokens=30, temperature=0),
            ),
            calibration=Calibration(NEVER, NEVER),
            generator=generator,
        )


def test_it_answers_prompts_that_it_never_saw(generator: ChatGLMGenerator) -> None:
    dice = random.Random("unseen")
    rows = [row(dice) for _ in range(50)]
    right = sum("".join(generator.stream(messages, GREEDY)) == answer for messages, answer in rows)
    assert right >= 47


@pytest.mark.parametrize("name", NUMBERS)
def test_the_right_answer_with_the_right_citation(pipeline: Pipeline, name: str) -> None:
    answer = pipeline.ask(question(name))
    [citation] = answer.citations
    assert answer.text == f"{name}厂的编号是{NUMBERS[name]}[{citation.number}]。"
    assert citation.quote == fact(name, NUMBERS[name])
    document = citation.chunk.document
    assert pipeline.store.text(document, citation.start, citation.end) == citation.quote
    assert Path(citation.chunk.source).parent.name == name
    assert answer.unsupported == answer.unknown == ()
    assert not answer.refused


def test_the_cited_number_is_where_the_passage_stood(pipeline: Pipeline) -> None:
    cited = set()
    for name in NUMBERS:
        answer = pipeline.ask(question(name), sampling=GREEDY)
        assert answer.prompt
        [citation] = answer.citations
        assert citation.quote == fact(name, NUMBERS[name])
        assert citation.quote in answer.prompt.sources[citation.number - 1].passage.text
        cited.add(citation.number)
    assert len(cited) > 1


def test_what_no_passage_says_the_model_refuses(pipeline: Pipeline) -> None:
    answer = pipeline.ask(question(UNKNOWN))
    assert answer.text == NOT_FOUND["han"]
    assert answer.refused
    assert answer.citations == ()
    assert len(answer.hits) == MOST


def test_a_refusal_before_generation_does_not_even_load_the_model(pipeline: Pipeline) -> None:
    def load() -> ChatGLMGenerator:
        raise AssertionError("loaded")

    strict = Curve(0.98, -1.35, 0.999)
    lazy = replace(pipeline, generator=LazyGenerator("tiny", load), calibration=Calibration(strict, strict))
    assert lazy.ask("xyzzy plugh quux?").refused


def test_streamed_pieces_are_the_answer(pipeline: Pipeline) -> None:
    _, *pieces, answer = pipeline.stream(question("乙"))
    assert isinstance(answer, Answer)
    assert len(pieces) > 3
    assert "".join(map(str, pieces)) == answer.text == pipeline.ask(question("乙")).text


def test_a_seed_gives_one_answer(pipeline: Pipeline) -> None:
    def ask(seed: int) -> Answer:
        return pipeline.ask(question("丙"), sampling=Sampling(30, 5.0, 1.0, seed))

    assert ask(1) == ask(1)
    assert len({ask(seed).text for seed in range(6)}) > 1


def test_closing_the_stream_stops_the_model(pipeline: Pipeline, generator: ChatGLMGenerator) -> None:
    steps: list[int] = []
    handle = generator.model.register_forward_pre_hook(lambda *_: steps.append(1))
    pieces = pipeline.stream(question("丁"))
    next(pieces)  # what was found
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    handle.remove()
    assert 1 <= len(steps) < 6


def test_a_conversation_keeps_to_the_window(pipeline: Pipeline) -> None:
    history = [Message("user", question("甲")), Message("assistant", "0" * 600)] * 3
    answer = pipeline.ask(question("戊"), history)
    assert answer.dropped.turns == 3
    assert NUMBERS["戊"] in answer.text


@pytest.fixture(scope="module")
def kb(docs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a person who has a knowledge base of these files."""
    home = tmp_path_factory.mktemp("home")
    environment = {"XDG_DATA_HOME": str(home), "LC_ALL": "zh_CN.UTF-8"}
    done = rag(environment, "ingest", str(docs))
    assert done.returncode == 0, done.stderr
    [folder] = home.rglob("kb.sqlite")
    (folder.parent / "rag.toml").write_text(
        f"[retrieve]\npassages = {MOST}\n[refuse]\nthreshold = 0.0\n", "utf-8"
    )
    return environment


OPTIONS = ["--quant", "none", "--temperature", "0", "--max-new-tokens", "30"]


def rag(kb: dict[str, str], *words: str, stdin: str = "") -> CompletedProcess[str]:
    return commands.rag(*words, environment=kb, stdin=stdin)


def test_the_command_answers_with_the_model(kb: dict[str, str], tiny: Path) -> None:
    done = rag(kb, "ask", "--json", "--model", str(tiny), *OPTIONS, question("己"))
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["generator"] == "tiny-chatglm3"
    [citation] = value["citations"]
    assert value["answer"] == f"己厂的编号是{NUMBERS['己']}[{citation['number']}]。"
    assert citation["quote"] == fact("己", NUMBERS["己"])
    assert value["unsupported"] == []
    assert "正在加载 tiny-chatglm3" in done.stderr


def test_a_chat_clears_and_stops(kb: dict[str, str], tiny: Path) -> None:
    lines = f"{question('甲')}\nclear\n{question('乙')}\nstop\n{question('丙')}\n"
    done = rag(kb, "chat", "--model", str(tiny), *OPTIONS, stdin=lines)
    assert done.returncode == 0, done.stderr
    assert f"甲厂的编号是{NUMBERS['甲']}" in done.stdout
    assert f"乙厂的编号是{NUMBERS['乙']}" in done.stdout
    assert "对话历史已清空" in done.stdout
    assert f"丙厂的编号是{NUMBERS['丙']}" not in done.stdout


def test_settings_may_name_the_model(kb: dict[str, str], tiny: Path) -> None:
    [database] = Path(kb["XDG_DATA_HOME"]).rglob("kb.sqlite")
    settings = database.parent / "rag.toml"
    before = settings.read_text("utf-8")
    settings.write_text(
        f'{before}[generate]\nmodel = "{tiny}"\nquant = "none"\ntemperature = 0\nmax_new_tokens = 30\n',
        "utf-8",
    )
    try:
        written = json.loads(rag(kb, "ask", "--json", question("庚")).stdout)
        read = json.loads(rag(kb, "ask", "--json", "--model", "", question("庚")).stdout)
    finally:
        settings.write_text(before, "utf-8")
    assert written["generator"] == "tiny-chatglm3"
    assert f"庚厂的编号是{NUMBERS['庚']}" in written["answer"]
    assert read["generator"] == ""


def test_an_adapter_changes_the_answer_and_a_dead_one_is_refused(
    kb: dict[str, str], tiny: Path, generator: ChatGLMGenerator, tmp_path: Path
) -> None:
    """Made with upstream's module names, without a contract: what was assumed is told."""
    ends = ["query_key_value", "dense_4h_to_h"]
    made = tensors(linears(generator.model, upstream=True), ends)
    strong = {name: t * 3 if "lora_B" in name else t for name, t in made.items()}
    named = {"base_model_name_or_path": "chatglm3-6b"}
    lively = write(tmp_path / "lively", strong, ends, **named)
    dead = {name: t * 0 if "lora_B" in name else t for name, t in made.items()}
    ask = ["ask", "--json", "--model", str(tiny), *OPTIONS, question("己"), "--adapter"]
    plain = rag(kb, *ask[:-1])
    done = rag(kb, *ask, str(lively))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer"] != json.loads(plain.stdout)["answer"]
    refused = rag(kb, *ask, str(write(tmp_path / "dead", dead, ends, **named)))
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1].startswith("rag：")
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--quant", "int3"], "int3"),
        (["--temperature", "-1"], "-1"),
        (["--max-new-tokens", "100000"], "100000"),
    ],
)
def test_a_wrong_option_is_one_line(kb: dict[str, str], tiny: Path, options: list[str], told: str) -> None:
    done = rag(kb, "ask", "--model", str(tiny), *options, question("甲"))
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("rag：")
    assert told in line
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_an_answer_and_keeps_the_chat(kb: dict[str, str], tiny: Path) -> None:
    """At a temperature that never ends an answer, one is stopped; the next question is answered."""
    options = ["--quant", "none", "--temperature", "0", "--max-new-tokens", "400"]
    with subprocess.Popen(
        [sys.executable, "-m", "rag", "chat", "--model", str(tiny), *options],
        env=os.environ | kb,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as chat:
        assert chat.stdin
        assert chat.stdout
        assert chat.stderr
        chat.stdin.write(f"{question('甲')}\n")
        chat.stdin.flush()
        assert any("加载" in line for line in iter(chat.stderr.readline, ""))  # it is about to load
        chat.send_signal(signal.SIGINT)
        chat.stdin.write(f"{question('乙')}\nstop\n")
        chat.stdin.flush()
        out, err = chat.communicate(timeout=300)
    assert chat.returncode == 0, err
    assert "已停止" in err
    assert f"乙厂的编号是{NUMBERS['乙']}" in out
