"""Every form of training data reads back as the conversation that was written in it."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.formats import AS_FOUND, examples, read
from finetune.data.tokenize import usable
from finetune.options import Columns
from finetune.types import Example, Finding
from ingest.errors import UserError
from ingest.i18n import translate
from rag.types import Message

DATA = Path(__file__).parents[2] / "data/alpaca"
SHARED = Path(__file__).parents[4] / "shared/alpaca"
WORDS = st.text(
    st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\n问答input:Answer"),
    min_size=1,
    max_size=30,
).filter(str.strip)
Written = Callable[[Example], dict[str, Any]]


def pairs(example: Example) -> list[list[str]]:
    past = [message.text for message in example.messages[:-2] if message.role != "system"]
    return [past[i : i + 2] for i in range(0, len(past), 2)]


def system(example: Example) -> dict[str, str]:
    first = example.messages[0]
    return {"system": first.text} if first.role == "system" else {}


def alpaca(example: Example) -> dict[str, Any]:
    history = {"history": pairs(example)} if pairs(example) else {}
    asked = {"instruction": example.question, "input": example.input}
    return {**asked, "output": example.answer, **history, **system(example)}


def columns(example: Example) -> dict[str, Any]:
    return {"q": example.question, "a": example.answer, "past": pairs(example), **system(example)}


def seed(example: Example) -> dict[str, Any]:
    instance = {"input": example.input, "output": example.answer}
    return {"id": "seed_task_0", "instruction": example.question, "instances": [instance]}


def sharegpt(example: Example) -> dict[str, Any]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    messages = [{"from": names[one.role], "value": one.text} for one in example.messages]
    return {"conversations": messages}


def messages(example: Example) -> dict[str, Any]:
    messages = [
        {"role": one.role, "content": one.text, "loss_weight": float(i not in example.context_only)}
        for i, one in enumerate(example.messages)
    ]
    return {"messages": messages}


def parts(example: Example) -> dict[str, Any]:
    """As LLaMA-Factory's version 1 and as OpenAI's, in turn."""
    messages: list[dict[str, Any]] = []
    for i, one in enumerate(example.messages):
        name = ("value", "text")[i % 2]
        halves = (one.text[: len(one.text) // 2], one.text[len(one.text) // 2 :])
        content = [{"type": "text", name: half} for half in halves]
        learnt = {} if i not in example.context_only else {"loss": False}
        messages.append({"role": one.role, "content": content, **learnt})
    return {"conversations": messages}


@st.composite
def conversations(draw: st.DrawFn, *, turns: int, with_system: bool, given: str) -> Example:
    messages = [Message("system", draw(WORDS))] if with_system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, turns))):
        messages += [Message("user", draw(WORDS)), Message("assistant", draw(WORDS))]
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    context = answers[:-1] if given == "past" else []
    if given == "any":
        learnt = draw(st.sets(st.sampled_from(answers), min_size=1))
        context = [i for i in answers if i not in learnt]
    return Example(tuple(messages), "", frozenset(context))


def one(folder: Path, text: str, name: str = "a.json", chosen: Columns = AS_FOUND) -> list[Any]:
    path = folder / name
    path.write_text(text, "utf-8")
    return list(read([path], columns=chosen))


@pytest.mark.parametrize(
    ("write", "shape", "with_input", "chosen"),
    [
        (alpaca, {"turns": 3, "with_system": True, "given": "past"}, True, Columns()),
        (columns, {"turns": 3, "with_system": True, "given": "past"}, False, Columns("q", "a", "past")),
        (seed, {"turns": 1, "with_system": False, "given": ""}, True, Columns()),
        (sharegpt, {"turns": 3, "with_system": True, "given": ""}, False, Columns()),
        (messages, {"turns": 3, "with_system": True, "given": "any"}, False, Columns()),
        (parts, {"turns": 3, "with_system": True, "given": "any"}, False, Columns()),
    ],
)  # fmt: skip
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_written_rows_are_read_back(
    write: Written,
    shape: dict[str, Any],
    with_input: bool,
    chosen: Columns,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rows = data.draw(st.lists(conversations(**shape), min_size=1, max_size=3))
    if with_input:
        rows = [replace(row, input=data.draw(WORDS | st.just(""))) for row in rows]
    ascii = data.draw(st.booleans())
    made = [write(row) for row in rows]
    folder = tmp_path_factory.mktemp("a")
    expected = [replace(row, source=f"a.json:{i}") for i, row in enumerate(rows, 1)]
    assert one(folder, json.dumps(made, ensure_ascii=ascii), chosen=chosen) == expected
    lines = "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in made)
    assert one(folder, lines, chosen=chosen) == expected


@settings(max_examples=25, deadline=None)
@given(conversations(turns=3, with_system=True, given="past"), WORDS)
def test_pairs_of_answers_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, example: Example, rejected: str
) -> None:
    row = alpaca(example)
    row |= {"chosen": row.pop("output"), "rejected": f"{rejected}甲"}
    (found,) = one(tmp_path_factory.mktemp("a"), json.dumps([row]))
    assert found == replace(example, source="a.json:1", rejected=f"{rejected}甲", whole=True)


@settings(max_examples=50, deadline=None)
@given(question=WORDS, input=WORDS | st.just(""), answer=WORDS)
def test_a_table_and_chosen_columns(
    question: str, input: str, answer: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["instruction", "input", "output"], [question, input, answer]])
    (found,) = one(tmp_path_factory.mktemp("a"), text.getvalue(), "a.csv")
    messages = (Message("user", question), Message("assistant", answer))
    assert found == Example(messages, input, source="a.csv:2")
    if input:  # a column that is named is the whole question
        chosen = Columns(prompt="input")
        (found,) = one(tmp_path_factory.mktemp("a"), text.getvalue(), "a.csv", chosen)
        assert (found.question, found.input) == (input, "")


@settings(max_examples=100, deadline=None)
@given(question=WORDS, input=WORDS | st.just(""), answer=WORDS)
def test_the_tutorials_frame_is_taken_off(
    question: str, input: str, answer: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def framed(question: str, input: str) -> str:  # as cover_alpaca2jsonl.py
        text = f"Instruction: {question}\n"
        return (text + f"Input: {input}\n" if input else text) + "Answer: "

    row = {"context": framed(question, input), "target": answer}
    (found,) = one(tmp_path_factory.mktemp("a"), json.dumps(row), "a.txt")
    assert framed(found.question, found.input) == row["context"]
    assert found.answer == answer
    if "\nInput: " not in question:
        assert (found.question, found.input) == (question, input)


def test_another_context_is_the_question_as_it_is(tmp_path: Path) -> None:
    found = list(examples([DATA / "med_context_target.txt"]))
    assert found[0].question.startswith("问题：一名患有急性胆管炎的患者")
    assert found[0].question.endswith("应该如何进行治疗？\n回答: ")
    row = {"context": "Instruction: 问\nAnswer: \n", "target": "答"}
    (other,) = one(tmp_path, json.dumps(row))
    assert other.question == row["context"]


GOOD = {"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}


@pytest.mark.parametrize(
    ("row", "problem", "text"),
    [
        ({"instruction": "问", "output": ""}, "empty", '"output" is empty; need a text'),
        ({"instruction": "问", "output": " \n"}, "empty", '"output" is empty; need a text'),
        ({"instruction": "问"}, "missing", '"output" is missing; need a text'),
        ({"instruction": "问", "output": None}, "missing", '"output" is missing; need a text'),
        ({"instruction": "问", "output": ["答"]}, "type", '"output" is a list of 1; need a text'),
        ({"instruction": "问", "output": 42}, "type", '"output" is a number; need a text'),
        ({"instruction": "", "input": " ", "output": "答"}, "empty", '"instruction" is empty; need a text'),
        ({"output": "答"}, "missing", '"instruction" is missing; need a text'),
        ({"instruction": "问", "input": True, "output": "答"}, "type", '"input" is true or false; need a text'),
        ({"instruction": "问", "output": "答", "history": "问"}, "type", '"history" is a text; need a list of [question, answer]'),
        ({"instruction": "问", "output": "答", "history": [["问"]]}, "type", '"history", turn 1 is a list of 1; need [question, answer]'),
        ({"instruction": "问", "output": "答", "history": [["问", "答"], ["问", None]]}, "missing", '"history[2].answer" is missing; need a text'),
        ({"instruction": "问", "output": "答", "history": [["", "答"]]}, "empty", '"history[1].question" is empty; need a text'),
        ({"instruction": "问", "output": "答\ud83d"}, "encoding", '"output" holds half a character (a lone surrogate); write it whole'),
        ({"context": "问"}, "missing", '"target" is missing; need a text'),
        ({"instruction": "问", "instances": []}, "type", '"instances" is a list of 0; need a list of one object'),
        ({"instruction": "问", "instances": [{"output": ""}]}, "empty", '"output" is empty; need a text'),
        ({"instruction": "问", "chosen": "答"}, "missing", '"rejected" is missing; need a text'),
        ({"instruction": "问", "rejected": "答"}, "missing", '"chosen" is missing; need a text'),
        ({"instruction": "问", "chosen": "答", "rejected": " 答"}, "conflict", '"chosen" and "rejected" are the same text; a pair needs two answers'),
        ({"messages": []}, "empty", '"messages" is empty; need messages'),
        ({"messages": "问"}, "type", '"messages" is a text; need a list of messages'),
        ({"messages": ["问"]}, "type", "message 1 is a text; need an object"),
        ({"messages": [GOOD[0]]}, "type", "the last message is the user's; need the assistant's"),
        ({"messages": [GOOD[1]]}, "type", "message 1 is the assistant's, but it is the user's turn"),
        ({"messages": [GOOD[0], GOOD[0]]}, "type", "message 2 is the user's, but it is the assistant's turn"),
        ({"messages": [*GOOD, {"role": "system", "content": "x"}]}, "type", "message 3 is the system's, but it is the user's turn"),
        ({"messages": [GOOD[0], {"role": "assistant", "content": ""}]}, "empty", '"content" is empty; need a text'),
        ({"messages": [GOOD[0], {"role": "assistant"}]}, "missing", '"content" is missing; need a text'),
        ({"messages": [GOOD[0], {**GOOD[1], "loss_weight": 0.5}]}, "type", '"loss_weight" of message 2 is 0.5; need 0 or 1'),
        ({"messages": [GOOD[0], {**GOOD[1], "loss": False}]}, "missing", "every message of the assistant has weight 0; at least one must count in the loss"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "type", "a part of \"content\" is of type 'image'; need text"),
        ({"conversations": [{"from": "human", "value": "问"}, {"from": "tool", "value": "x"}]}, "type", "message 2 has the role 'tool'"),
        ({"messages": GOOD, "tools": [{"name": "f"}]}, "type", '"tools" holds tools or calls of them, which are not learnt'),
        ({"messages": [GOOD[0], {**GOOD[1], "tool_calls": [{"id": "1"}]}]}, "type", '"tool_calls" holds tools or calls of them'),
        ({"conversations": [{"value": "问"}]}, "missing", '"role" is missing'),
        ({"text": "x"}, "missing", '"instruction" is missing; need a text'),
        ("问", "type", "row is a text; need an object"),
        (None, "type", "row is null; need an object"),
    ],
)  # fmt: skip
def test_each_error_of_a_row_is_named(row: Any, problem: str, text: str, tmp_path: Path) -> None:
    good = {"instruction": "问", "output": "答"}
    before, found, after = one(tmp_path, json.dumps([good, row, good]))
    assert isinstance(before, Example)
    assert isinstance(after, Example)
    assert isinstance(found, Finding)
    assert (found.source, found.problem, found.bad) == ("a.json:2", problem, True)
    assert found.text.startswith(text)
    assert translate(found.text, "zh") not in ("", found.text)


def test_optional_fields_may_be_absent(tmp_path: Path) -> None:
    rows = [
        {"instruction": "问", "input": None, "output": "答", "history": None, "system": " "},
        {"instruction": "", "input": "问", "output": "答"},
        {"conversations": [{"role": "system", "content": ""}, *GOOD]},
    ]
    answer = Message("assistant", "答")
    assert one(tmp_path, json.dumps(rows)) == [
        Example((Message("user", "问"), answer), source="a.json:1"),
        Example((Message("user", ""), answer), "问", source="a.json:2"),
        Example((Message("user", "问"), answer), source="a.json:3"),
    ]


@pytest.mark.parametrize(("before", "after"), [("[", "]"), ("", "\n")])
def test_a_repeated_key_is_an_error(tmp_path: Path, before: str, after: str) -> None:
    twice = '{"instruction": "问", "output": "一", "output": "二"}'
    inner = '{"messages": [{"role": "user", "role": "user", "content": "问"}]}'
    good = json.dumps({"instruction": "问", "output": "答"})
    between = ",\n" if before else "\n"
    found = one(tmp_path, before + between.join([good, twice, inner, good]) + after)
    assert [type(item) for item in found] == [Example, Finding, Finding, Example]
    for item, key in zip(found[1:3], ("output", "role"), strict=True):
        assert isinstance(item, Finding)
        assert (item.problem, item.bad) == ("broken", True)
        assert f'"{key}" occurs twice' in item.text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"train": [{"instruction": "问", "output": "答"}]}', "rows seem to be in 'train'"),
        ('{\n "instruction": "问",\n "output": 答\n}\n', r"if \[ and \] are put around it"),
    ],
)
def test_one_object_is_an_error_with_advice(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        one(tmp_path, text)


@pytest.mark.parametrize("sign", ["\u200b", "\ufeff", " \u200d\n\u2060"])
def test_characters_without_width_are_not_text(tmp_path: Path, sign: str) -> None:
    rows = [
        {"instruction": sign, "output": "答"},
        {"instruction": sign, "input": "问", "output": sign},
        {"instruction": f"问{sign}", "input": "", "output": "答", "system": sign},
    ]
    *bad, good = one(tmp_path, json.dumps(rows))
    assert [(found.source, found.problem) for found in bad if isinstance(found, Finding)] == [
        ("a.json:1", "empty"),
        ("a.json:2", "empty"),
    ]
    assert isinstance(good, Example)
    assert len(good.messages) == 2


def test_bad_rows_stop_and_only_existing_options_are_named() -> None:
    path = DATA / "messy_bad_fields.json"
    says = r'messy_bad_fields.json:4: "output" is empty'
    with pytest.raises(UserError, match=rf"{says}.*delete it$"):
        list(examples([path]))
    with pytest.raises(UserError, match=rf"{says}.*--skip-bad$"):
        list(usable([path], Columns(), skip_bad=False))


def test_bad_rows_do_not_hide_the_others() -> None:
    path = DATA / "messy_bad_fields.json"
    kept = [item.source for item in read([path]) if isinstance(item, Example)]
    left = [i for i in range(30) if i % 10 not in (3, 5, 9)]
    assert kept == [f"messy_bad_fields.json:{i + 1}" for i in left]


def test_a_file_without_a_known_field_names_those_it_has(tmp_path: Path) -> None:
    row = json.dumps([{"prompt\x1b[2J": "问", "completion": "答"}])
    with pytest.raises(UserError, match=r"'prompt\\x1b\[2J', 'completion'.*--prompt-column"):
        one(tmp_path, row)
    with pytest.raises(UserError, match="need content"):
        one(tmp_path, json.dumps([{"instruction": "问", "output": "答"}]), chosen=Columns("content"))


@pytest.mark.parametrize(("text", "name"), [("[ ]", "a.json"), ("instruction,output\n", "a.csv")])
def test_a_file_without_rows_is_an_error(text: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{name} has no rows"):
        one(tmp_path, text, name)


def test_files_of_the_same_name_are_distinguished(tmp_path: Path) -> None:
    paths = [tmp_path / "a/x.json", tmp_path / "b/x.json", tmp_path / "y.json"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([{"instruction": "问", "output": "答"}]))
    sources = [item.source for item in read(paths)]
    assert sources == [f"{paths[0]}:1", f"{paths[1]}:1", "y.json:1"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
def test_all_shared_data_is_read() -> None:
    manifest = [json.loads(line) for line in (SHARED / "manifest.jsonl").read_text("utf-8").splitlines()]
    bad = {"messy_bad_fields.json": 9, "messy_broken_lines.jsonl": 2, "messy_truncated.json": 1}
    # The manifest counts the broken line of messy_broken_lines as a record, the comment not.
    usable = {
        "messy_bad_fields.json": 21, "messy_broken_lines.jsonl": 37, "messy_truncated.json": 13,
    }  # fmt: skip
    for entry in manifest:
        name = entry["file"]
        found = list(read([SHARED / name]))
        kept = [item for item in found if isinstance(item, Example)]
        assert len(kept) == usable.get(name, entry["records"]), name
        assert len(found) - len(kept) == bad.get(name, 0), name
    history = list(read([SHARED / "oasst_zh_history.json"]))
    rows = json.loads((SHARED / "oasst_zh_history.json").read_text("utf-8"))
    assert [len(item.messages) for item in history if isinstance(item, Example)] == [
        2 + 2 * len(row["history"]) for row in rows
    ]
