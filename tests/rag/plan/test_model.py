"""A plan follows the load: more of it never takes less, and engines come in their order."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.errors import UserError
from ingest.store.vector_index import EXACT_ROWS
from rag.plan.constants import shipped
from rag.plan.generation import GPUS, on_gpus, on_processor
from rag.plan.load import Load
from rag.plan.model import ENGINES, GB, Limits, Plan, Size, files, first, plans, questions
from tests.rag.plan.curve import at, takeovers

CONSTANTS = shipped()
CHUNKS = st.integers(1, 10**10)
RATES = st.floats(0.01, 10_000)


def taken(plan: Plan) -> list[float]:
    """What more load never lessens."""
    return [plan.memory, *plan.disk.values(), plan.machines * plan.size.cores, plan.processes]


@settings(max_examples=60, deadline=None)
@given(CHUNKS, RATES, st.floats(1, 100))
def test_more_chunks_take_no_less_and_a_later_engine(
    chunks: int, qps: float, factor: float
) -> None:
    few, many = at(CONSTANTS, chunks, qps=qps), at(CONSTANTS, round(chunks * factor), qps=qps)
    for engine in ENGINES:
        for less, more in zip(taken(few[engine]), taken(many[engine]), strict=True):
            assert less <= more * (1 + 1e-9)
    for engine in ("local", "replicas"):
        assert few[engine].latency <= many[engine].latency
    assert few["local"].read_in <= many["local"].read_in
    assert ENGINES.index(first(few).engine) <= ENGINES.index(first(many).engine)


@settings(max_examples=60, deadline=None)
@given(CHUNKS, RATES, st.floats(1, 100))
def test_more_questions_take_no_less_and_a_later_engine(
    chunks: int, qps: float, factor: float
) -> None:
    few, many = at(CONSTANTS, chunks, qps=qps), at(CONSTANTS, chunks, qps=qps * factor)
    for engine in ENGINES:
        for less, more in zip(taken(few[engine]), taken(many[engine]), strict=True):
            assert less <= more * (1 + 1e-9)
    assert ENGINES.index(first(few).engine) <= ENGINES.index(first(many).engine)


@given(CHUNKS)
def test_twice_the_chunks_are_twice_the_disk(chunks: int) -> None:
    one, two = files(CONSTANTS.costs, chunks), files(CONSTANTS.costs, 2 * chunks)
    assert sum(two.values()) == pytest.approx(2 * sum(one.values()))


def test_an_engine_that_suffices_can_what_is_asked() -> None:
    for chunks in (10**4, 10**6, 10**8):
        for qps in (0.1, 10, 1000):
            for plan in at(CONSTANTS, chunks, qps=qps).values():
                if not plan.problems:
                    assert plan.capacity >= qps
                    assert plan.latency <= Limits().latency
                    assert plan.read_in <= 7.01 * 86_400


def test_where_an_engine_takes_over_the_one_before_it_has_just_ceased_to_suffice() -> None:
    found = takeovers(CONSTANTS, qps=1)
    assert list(found) == sorted(found, key=ENGINES.index)
    assert list(found.values()) == sorted(found.values())
    for engine, chunks in found.items():
        assert first(at(CONSTANTS, chunks, qps=1)).engine == engine
        if chunks > 10**4:
            before = first(at(CONSTANTS, chunks - 1, qps=1)).engine
            assert ENGINES.index(before) < ENGINES.index(engine)


def test_every_reason_against_an_engine_is_told() -> None:
    tight = Limits(latency=1e-4, days=1e-4, size=Size(1, GB))
    load = Load.of(CONSTANTS, documents=1_000_000, qps=1000)
    reasons = " ".join(
        why.en for why in plans(CONSTANTS, load, tight, gpu=GPUS["a100"])["local"].problems
    )
    for word in ("memory", "questions/s", "seconds a question", "days of reading"):
        assert word in reasons
    many = plans(CONSTANTS, load, tight, gpu=GPUS["a100"])["replicas"]
    assert "cores" in " ".join(why.en for why in many.problems)


def test_searches_were_measured_to_take_what_the_model_says() -> None:
    """The model is a line through these points; none is off by more than a factor of 2."""
    coded = [point for point in CONSTANTS.points if point.chunks > EXACT_ROWS]
    assert coded
    for point in coded:
        stages = questions(CONSTANTS.costs, point.chunks)
        assert 0.5 < stages["vectors"] / point.dense < 2
        assert 0.5 < stages["words"] / point.lexical < 2


def test_documents_are_counted_by_kind_size_or_chunks() -> None:
    one = replace(CONSTANTS, kinds={"pdf": CONSTANTS.kind()})
    like = one.kind("pdf")
    assert Load.of(one, documents=like.files, qps=1).chunks == like.chunks
    assert Load.of(one, documents=like.files, qps=1).parse == pytest.approx(like.seconds)
    assert Load.of(one, documents=7, qps=1, chunks_per_document=3).chunks == 21
    sized = Load.of(one, documents=7, qps=1, megabytes=like.size / 1e6)
    assert sized.chunks == like.chunks


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"documents": 0}, "--documents is 0"),
        ({"documents": -5}, "--documents is -5"),
        ({"documents": 10**14}, "a plan is made for"),
        ({"qps": 0.0}, "--qps is 0"),
        ({"qps": float("nan")}, "--qps is nan"),
        ({"qps": 1e9}, "--qps is 1e+09"),
        ({"chunks_per_document": 0.0}, "--chunks-per-document is 0"),
        ({"megabytes": -1.0}, "--megabytes is -1"),
        ({"megabytes": 1.0, "chunks_per_document": 2.0}, "name one"),
        ({"kind": "scroll"}, "no document of the kind scroll"),
        ({"model": 5000.0}, "--model is 5000"),
    ],
)
def test_a_load_that_makes_no_sense_is_one_line(wrong: dict, says: str) -> None:
    with pytest.raises(UserError, match=r"need|made|name|measured") as caught:
        Load.of(CONSTANTS, **({"documents": 100, "qps": 1.0} | wrong))
    assert says in str(caught.value)
    assert "\n" not in f"{caught.value}{caught.value.zh}"
    assert caught.value.zh != str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [{"latency": 0}, {"days": -1}, {"size": Size(0, GB)}, {"size": Size(4, 0)}, {"latency": 1e9}],
)
def test_limits_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match="need"):
        Limits(**wrong)


def test_a_larger_language_model_is_slower_and_more_questions_take_more_gpus() -> None:
    costs = replace(CONSTANTS.costs, flops_rate=3e11, bytes_rate=2.5e10)
    small, large = on_processor(costs, 6), on_processor(costs, 9)
    assert small
    assert large
    assert small.seconds < large.seconds
    assert on_processor(replace(costs, flops_rate=None), 6) is None
    for gpu in GPUS.values():
        few, many = (on_gpus(gpu, 9, qps, busy=0.7) for qps in (1, 100))
        assert 1 <= few.gpus < many.gpus
        assert on_gpus(gpu, 200, 1, busy=0.7).gpus > 1  # does not fit one


def test_a_model_runs_on_the_processor_where_that_is_fast_enough_and_on_gpus_else() -> None:
    fast = replace(CONSTANTS, costs=replace(CONSTANTS.costs, flops_rate=3e11, bytes_rate=2.5e10))
    for qps, on_gpu in ((0.001, False), (5, True)):
        load = Load.of(fast, documents=1000, qps=qps, model=6)
        for plan in plans(fast, load, Limits(), gpu=GPUS["a100"]).values():
            assert plan.writing
            assert bool(plan.writing.gpus) is on_gpu
