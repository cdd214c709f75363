"""Base and adapter are asked the same; what each condition shows, and what the figures say."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from finetune.evaluate.compare import compare, decide
from finetune.evaluate.questions import (
    CONDITIONS,
    Case,
    Cases,
    Condition,
    GoldSpan,
    HeldOutQuestion,
    Pair,
    read,
)
from finetune.evaluate.run import CaseResult, evaluate
from finetune.types import Example
from ingest.i18n import translate
from rag.evaluate.report import Difference
from rag.pipeline import Pipeline
from rag.prompt import compose
from rag.types import NOT_FOUND, Message, Source
from tests.finetune.factories import (
    GREEDY,
    NUMBERS,
    UNKNOWN,
    Careful,
    Memory,
    Speaking,
    ThinAir,
    grounded_rows,
    pair,
    pipeline_over,
    write_docs,
    write_lines,
)
from tests.tiny import MOST, question

Figures = dict[tuple[str, str], Difference]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    home = tmp_path_factory.mktemp("home")
    with pipeline_over(write_docs(home / "docs"), home / "kb") as made:
        yield made


@pytest.fixture(scope="module")
def questions(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> list[HeldOutQuestion]:
    """Of each factory, and of two that no document names."""
    path = tmp_path_factory.mktemp("rows") / "heldout.jsonl"
    known = read(write_lines(path, grounded_rows(pipeline.store)), pipeline.store).questions
    unknown = [HeldOutQuestion(name, question(name), (), answerable=False) for name in UNKNOWN]
    return [*known, *unknown]


def run(
    pipeline: Pipeline,
    questions: Sequence[HeldOutQuestion],
    base: Speaking,
    adapter: Speaking,
    conditions: Sequence[Condition] = CONDITIONS,
) -> list[tuple[CaseResult, ...]]:
    return list(evaluate(questions, conditions, Cases(pair(base, adapter), pipeline, GREEDY)))


def figures(results: Sequence[Sequence[CaseResult]]) -> Figures:
    return compare(results, resamples=300)


def cases_of(pipeline: Pipeline, question: HeldOutQuestion, pair_: Pair | None = None) -> dict[str, Case]:
    cases = Cases(pair_ or pair(Careful(), Careful()), pipeline, GREEDY)
    return {case.condition: case for case in cases.of(question, CONDITIONS)}


def test_each_condition_has_its_passages(pipeline: Pipeline, questions: list[HeldOutQuestion]) -> None:
    for asked in questions[: len(NUMBERS)]:
        cases = cases_of(pipeline, asked)
        answer = asked.answers[0]
        assert list(cases) == list(CONDITIONS)
        assert cases["closed"].base == cases["closed"].adapter == (Message("user", asked.text),)
        [only] = cases["gold"].sources
        assert answer in only.passage.text
        assert (cases["gold"].gold, cases["gold"].refuse) == ({1}, False)
        found = [source.passage for source in cases["retrieved"].sources]
        assert set(found) == set(pipeline.retrieve(asked.text).passages)
        assert not cases["retrieved"].refuse
        for number in cases["retrieved"].gold:
            assert answer in found[number - 1].text
        assert len(cases["distractors"].sources) == MOST
        assert not any(answer in s.passage.text for s in cases["distractors"].sources)
        assert (cases["distractors"].gold, cases["distractors"].refuse) == (frozenset(), True)


def test_prompts_are_those_of_rag_ask(pipeline: Pipeline, questions: list[HeldOutQuestion]) -> None:
    asked = questions[0]
    found = pipeline.retrieve(asked.text)
    sources = [Source(*each) for each in zip(found.passages, found.hits, strict=True)]
    generator = Careful()
    room = generator.context - GREEDY.max_new_tokens
    prompt = compose(asked.text, sources, [], generator.count, room)
    case = cases_of(pipeline, asked)["retrieved"]
    assert case.base == case.adapter == prompt.messages


def test_unanswerable_questions_occur_under_conditions_that_can_refuse(
    pipeline: Pipeline, questions: list[HeldOutQuestion]
) -> None:
    cases = cases_of(pipeline, questions[-1])
    assert list(cases) == ["retrieved", "distractors"]
    assert all(case.refuse for case in cases.values())


def test_without_the_gold_passage_refusing_is_right(tmp_path: Path) -> None:
    """Asks for one factory in the words of another, of which alone the passage is found."""
    with pipeline_over(write_docs(tmp_path / "docs"), tmp_path / "kb", passages=1) as pipeline:
        rows = {str(row["id"]): row for row in grounded_rows(pipeline.store)}
        place = GoldSpan(str(rows["q-甲"]["document"]), 0, 3)
        case = cases_of(pipeline, HeldOutQuestion("x", question("乙"), (NUMBERS["甲"],), places=(place,)))
        assert case["retrieved"].refuse
        assert NUMBERS["乙"] in case["retrieved"].sources[0].passage.text
        # The words of an answer elsewhere than where it is: no one knows what is right.
        vague = HeldOutQuestion("y", question("乙"), (NUMBERS["乙"],), places=(place,))
        assert "retrieved" not in cases_of(pipeline, vague)


def test_passages_beyond_the_window_do_not_count(
    pipeline: Pipeline, questions: list[HeldOutQuestion]
) -> None:
    """The passage that answers comes second. Where the window holds one, refusing is right."""
    text = questions[0].text
    _, second, *_ = pipeline.retrieve(text).hits
    place = GoldSpan(second.chunk.document, second.chunk.start, second.chunk.end)
    asked = HeldOutQuestion("x", text, (second.chunk.text.strip(),), places=(place,))
    wide = cases_of(pipeline, asked)
    sources = [source.hit.chunk for source in wide["retrieved"].sources]
    gold = {sources.index(second.chunk) + 1}
    assert (wide["retrieved"].gold, wide["retrieved"].refuse) == (gold, False)
    narrow = Careful()
    narrow.context = narrow.count(wide["gold"].base) + GREEDY.max_new_tokens
    kept = cases_of(pipeline, asked, pair(Careful(), narrow))["retrieved"]
    assert (len(kept.sources), kept.gold, kept.refuse) == (1, frozenset(), True)


def test_an_input_is_written_in_the_template_of_each_model() -> None:
    messages = (Message("user", "翻译"), Message("assistant", "Hello"))
    asked = HeldOutQuestion("a", "翻译", ("Hello",), example=Example(messages, "你好"))
    tutorial = Pair(Careful(), Careful(), "tutorial")
    [case] = Cases(tutorial, None, GREEDY).of(asked, ("closed",))
    assert case.base == (Message("user", "翻译\n你好"),)
    assert case.adapter == (Message("system", "翻译"), Message("user", "你好"))


def test_each_prompt_is_sent_once(pipeline: Pipeline, questions: list[HeldOutQuestion]) -> None:
    base, adapter = Careful(), Careful()
    run(pipeline, questions, base, adapter)
    assert base.prompts == adapter.prompts
    for asked in questions:
        prompts = [prompt for prompt in base.prompts if asked.text in prompt[-1].text]
        assert len(prompts) == len(set(prompts))


def test_a_careful_reader_is_right_under_every_condition(
    pipeline: Pipeline, questions: list[HeldOutQuestion]
) -> None:
    found = figures(run(pipeline, questions, Memory(), Memory()))
    for condition in ("closed", "gold", "retrieved"):
        assert found[condition, "contains"].second.value == 1
        assert found[condition, "exact"].second.value == 1
    for measure in ("refusal_precision", "refusal_recall", "refusal_f1"):
        assert found["passages", measure].second.value == 1
    assert found["gold", "grounded"].second.value == 1
    assert found["retrieved", "known"].second.value == 1
    assert found["retrieved", "unsupported"].second.value == 0
    assert all(each.difference == 0 and each.low == each.high == 0 for each in found.values())
    assert not decide(found).ship  # nothing got better


def test_a_model_that_invents_answers(pipeline: Pipeline, questions: list[HeldOutQuestion]) -> None:
    found = figures(run(pipeline, questions, ThinAir(), ThinAir()))
    assert found["retrieved", "contains"].first.value == 0
    assert found["distractors", "refusal_recall"].first.value == 0
    assert found["passages", "refusal_f1"].first.value == 0
    assert found["retrieved", "unsupported"].first.value == 1
    assert ("passages", "refusal_precision") not in found  # neither ever refuses
    assert found["gold", "false_refusals"].first.value == 0


def test_refusal_scores_equal_their_definition(pipeline: Pipeline, questions: list[HeldOutQuestion]) -> None:
    results = run(pipeline, questions, Careful(), ThinAir())
    found = figures(results)
    asked = [each for cases in results for each in cases if each.case.sources]
    refusals = sum(each.base.refused for each in asked)
    right = sum(each.base.refused and each.case.refuse for each in asked)
    wanted = sum(each.case.refuse for each in asked)
    assert wanted > len(NUMBERS)
    together = {
        measure: found["passages", f"refusal_{measure}"].first.value
        for measure in ("precision", "recall", "f1")
    }
    assert together["precision"] == pytest.approx(right / refusals)
    assert together["recall"] == pytest.approx(right / wanted)
    assert together["f1"] == pytest.approx(2 * right / (refusals + wanted))


def test_a_good_adapter_is_shipped_and_a_bad_one_is_not(
    pipeline: Pipeline, questions: list[HeldOutQuestion]
) -> None:
    good = decide(figures(run(pipeline, questions, ThinAir(), Careful())))
    assert good.ship
    assert any("F1, gold passage" in reason for reason in good.reasons)
    bad = decide(figures(run(pipeline, questions, Careful(), ThinAir())))
    assert not bad.ship
    assert any(reason.startswith("worse: F1, retrieved") for reason in bad.reasons)
    assert all(translate(reason, "zh") != reason for reason in bad.reasons)


def test_an_adapter_that_forgets_is_not_shipped(pipeline: Pipeline, questions: list[HeldOutQuestion]) -> None:
    """It reads as well as its base, and has lost what that knew by heart."""
    found = figures(run(pipeline, questions, Memory(), Careful()))
    reasons = decide(found).reasons
    assert [reason.split(":")[1] for reason in reasons] == [" F1, closed book"]


def test_a_refusal_scores_zero_as_an_answer(pipeline: Pipeline, questions: list[HeldOutQuestion]) -> None:
    class Silent(Speaking):
        def reply(self, asked: str, fenced: list[tuple[str, str, str]]) -> str:
            return NOT_FOUND["han"]

    found = figures(run(pipeline, questions, Careful(), Silent()))
    assert found["gold", "f1"].second.value == found["gold", "rouge_l"].second.value == 0
    assert found["gold", "false_refusals"].second.value == 1
    assert found["passages", "refusal_recall"].second.value == 1
    assert found["passages", "refusal_precision"].second.value < 1
    assert found["gold", "grounded"].second.value == 0


def test_the_same_seed_gives_the_same_intervals(pipeline: Pipeline, questions: list[HeldOutQuestion]) -> None:
    results = run(pipeline, questions[:3] + questions[-1:], ThinAir(), Careful())
    assert str(compare(results, resamples=200)) == str(compare(results, resamples=200))
    assert compare([]) == {}
