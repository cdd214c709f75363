"""Predictions are what they were, more load never takes less, and engines come in their order."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scale import ENGINES, POINTS, at, smallest, takeovers
from ingest.errors import UserError
from ingest.i18n import translate
from ingest.store.vector_index import EXACT_ROWS
from rag.cli.plan import GPUS, Constants, EnginePlan, GenerationPlan, PlanOptions, Predictor

GOLDEN = Path(__file__).parents[2] / "golden" / "plan.json"
CONSTANTS = Constants.read()
LIKE = CONSTANTS.documents()
CHUNKS = st.integers(1, 10**9)
RATES = st.floats(0.01, 10_000)


def plans(constants: Constants = CONSTANTS, **options: object) -> dict[str, EnginePlan]:
    predictor = Predictor(constants, PlanOptions(**options))  # type: ignore[arg-type]
    return {plan.engine: plan for plan in predictor.plans()}


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_bytes())["cases"])
def test_predictions_are_what_they_were(case: dict) -> None:
    words = case["options"].split()
    pairs = zip(words[::2], words[1::2], strict=True)
    options = {name[2:]: value if name in ("--kind", "--gpu") else float(value) for name, value in pairs}
    predictor = Predictor(Constants.read(GOLDEN), PlanOptions(**options))
    found = {plan.engine: plan for plan in predictor.plans()}
    sufficient = [engine for engine, plan in found.items() if not plan.shortfalls]
    assert predictor.chunks == case["chunks"]
    assert sufficient[:1] == [case["smallest"]] * (case["smallest"] is not None)
    for golden in case["plans"]:
        plan = found[golden["engine"]]
        values = asdict(plan) | {
            "cores": plan.size.cores,
            "gpus": predictor.generation and predictor.generation.gpus,
            "answer": predictor.generation and predictor.generation.seconds,
            "shortfalls": list(plan.shortfalls),
        }
        del golden["pods"]  # their number is not reported
        for name, number in golden.items():
            exact = not isinstance(number, float)
            assert values[name] == (number if exact else pytest.approx(number, rel=1e-9)), name


def resources(plan: EnginePlan) -> list[float]:
    """What more load never lessens."""
    return [plan.memory, plan.disk, plan.machines * plan.size.cores, plan.processes]


def assert_grows(few: dict[str, EnginePlan], many: dict[str, EnginePlan]) -> None:
    for engine in ENGINES:
        pairs = zip(resources(few[engine]), resources(many[engine]), strict=True)
        assert all(less <= more * (1 + 1e-6) for less, more in pairs)
    assert ENGINES.index(smallest(few).engine) <= ENGINES.index(smallest(many).engine)


@settings(max_examples=60, deadline=None)
@given(CHUNKS, RATES, st.floats(1, 100))
def test_more_chunks_take_no_less_and_a_later_engine(chunks: int, qps: float, factor: float) -> None:
    more = min(round(chunks * factor), 10**9)
    few, many = at(CONSTANTS, chunks, qps=qps), at(CONSTANTS, more, qps=qps)
    assert_grows(few, many)
    for engine in ("local", "replicas"):
        assert few[engine].latency <= many[engine].latency
    assert few["local"].ingest_time <= many["local"].ingest_time


@settings(max_examples=60, deadline=None)
@given(CHUNKS, RATES, st.floats(1, 100))
def test_more_questions_take_no_less_and_a_later_engine(chunks: int, qps: float, factor: float) -> None:
    assert_grows(at(CONSTANTS, chunks, qps=qps), at(CONSTANTS, chunks, qps=qps * factor))


@given(st.integers(1, 10**8))
def test_twice_the_chunks_are_twice_the_disk(chunks: int) -> None:
    one, two = (at(CONSTANTS, count)["local"].disk for count in (chunks, 2 * chunks))
    assert two == pytest.approx(2 * one)


@pytest.mark.parametrize("chunks", [10**4, 10**6, 10**8])
@pytest.mark.parametrize("qps", [0.1, 10, 1000])
def test_an_engine_that_suffices_holds_the_demands(chunks: int, qps: float) -> None:
    for plan in at(CONSTANTS, chunks, qps=qps).values():
        if not plan.shortfalls:
            assert plan.capacity >= qps
            assert plan.latency <= 0.5
            assert plan.ingest_time <= 7.01 * 86_400


def test_if_an_engine_takes_over_the_one_before_it_no_longer_suffices() -> None:
    found = takeovers(CONSTANTS, qps=1)
    assert list(found) == sorted(found, key=ENGINES.index)
    assert list(found.values()) == sorted(found.values())
    for engine, chunks in found.items():
        assert smallest(at(CONSTANTS, chunks, qps=1)).engine == engine
        if chunks > 10**4:
            before = smallest(at(CONSTANTS, chunks - 1, qps=1)).engine
            assert ENGINES.index(before) < ENGINES.index(engine)


def test_every_shortfall_of_an_engine_is_reported() -> None:
    found = plans(documents=10**6, qps=1000, latency=1e-4, days=1e-4, cores=1, memory=1)
    assert set(found["local"].shortfalls) == {"memory", "qps", "latency", "days"}
    assert "cores" in found["replicas"].shortfalls
    for plan in found.values():
        assert all(needed > available for needed, available in plan.shortfalls.values())


def test_searches_were_measured_to_take_what_the_model_says() -> None:
    """The model is a line through these points; none is off by more than a factor of 2."""
    coded = [point for point in POINTS if point["chunks"] > EXACT_ROWS]
    assert coded
    for point in coded:
        options = PlanOptions(documents=1, chunks_per_document=point["chunks"])
        stages = Predictor(CONSTANTS, options).question()
        assert 0.5 < stages["vectors"] / point["vectors"] < 2
        assert 0.5 < stages["words"] / point["words"] < 2


def test_documents_are_counted_by_kind_size_or_chunks() -> None:
    def predictor(**options: object) -> Predictor:
        return Predictor(CONSTANTS, PlanOptions(**options))  # type: ignore[arg-type]

    pdf = CONSTANTS.documents("pdf")
    same = predictor(documents=pdf.files, kind="pdf")
    assert same.chunks == pdf.chunks
    assert same.parse == pytest.approx(pdf.seconds)
    assert predictor(documents=LIKE.files).chunks == LIKE.chunks
    assert LIKE.chunks == sum(each.chunks for each in CONSTANTS.formats.values())
    assert predictor(documents=7, chunks_per_document=3).chunks == 21
    assert predictor(documents=7, megabytes=LIKE.size / 1e6).chunks == LIKE.chunks


@pytest.mark.parametrize(
    "wrong",
    [
        {"documents": 0}, {"documents": -5}, {"documents": 10**14}, {"qps": 0.0}, {"qps": float("nan")},
        {"chunks_per_document": 0.0}, {"megabytes": -1.0}, {"model": 5e15},
        {"latency": 0}, {"latency": 1e13}, {"days": -1}, {"cores": 0, "memory": 1},
        {"cores": 4, "memory": 0},
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_one_line(wrong: dict) -> None:
    with pytest.raises(UserError) as caught:
        PlanOptions(**({"documents": 100} | wrong))
    name = next(iter(wrong)) if "memory" not in wrong or not wrong["cores"] else "memory"
    assert str(caught.value).startswith(f"--{name.replace('_', '-')} is ")
    assert "\n" not in f"{caught.value}{translate(caught.value.message, 'zh')}"
    assert translate(caught.value.message, "zh") != str(caught.value)


def test_a_kind_that_was_not_measured_is_one_line() -> None:
    with pytest.raises(UserError, match="--kind is scroll; measured: csv, docx"):
        CONSTANTS.documents("scroll")


def test_a_cluster_holds_what_it_loads_and_searches_what_is_asked() -> None:
    for chunks in (10**3, 10**6, 3 * 10**7, 10**8, 10**9):
        for qps in (1, 100, 5_000):
            plan = at(CONSTANTS, chunks, qps=qps)["milvus"]
            assert plan.memory >= chunks * 1088  # codes, vectors, graph
            assert plan.capacity >= qps * (1 - 1e-9)
            assert plan.machines * plan.size.memory >= plan.memory


def generation(constants: Constants = CONSTANTS, **options: object) -> GenerationPlan:
    predictor = Predictor(constants, PlanOptions(documents=1000, **options))  # type: ignore[arg-type]
    assert predictor.generation
    return predictor.generation


def test_a_larger_language_model_is_slower_and_more_questions_take_more_gpus() -> None:
    for gpu in GPUS:
        one, larger, busy, huge = (
            generation(qps=qps, model=model, gpu=gpu)
            for qps, model in ((1, 9), (1, 130), (1000, 9), (0.5, 200))
        )
        assert one.seconds < larger.seconds
        assert 1 <= one.gpus < busy.gpus
        assert huge.gpus > 1  # it does not fit one


def test_a_model_runs_on_the_processor_if_that_is_fast_enough_else_on_gpus() -> None:
    unmeasured = replace(CONSTANTS, costs=replace(CONSTANTS.costs, int4_flops=None))
    for constants, qps, on_gpu in (
        (CONSTANTS, 0.001, False), (CONSTANTS, 5, True), (unmeasured, 0.001, True),
    ):  # fmt: skip
        assert bool(generation(constants, qps=qps, model=6).gpus) is on_gpu


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "another 1"),
        (("costs",), None),
        (("costs", "embed"), None),
        (("costs", "embed"), 0),
        (("costs", "embed"), -1.0),
        (("costs", "embed"), float("nan")),
        (("costs", "embed"), float("inf")),
        (("costs", "embed"), "fast"),
        (("costs", "speed"), 1.0),
        (("machine", "cores"), None),
        (("formats",), {}),
        (("formats", "pdf", "files"), 0),
    ],
)
def test_a_damaged_file_of_constants_is_refused(path: tuple[str, ...], value: object, tmp_path: Path) -> None:
    constants = json.loads(GOLDEN.read_bytes())
    *parents, last = path
    part = constants
    for name in parents:
        part = part[name]
    if value is None:
        del part[last]
    else:
        part[last] = value
    assert_refused(tmp_path / "constants.json", json.dumps(constants))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"text"', "\xff", "{}", '{"costs": 1}'])
def test_a_file_without_constants_is_refused(text: str, tmp_path: Path) -> None:
    assert_refused(tmp_path / "constants.json", text)


def assert_refused(path: Path, text: str) -> None:
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="is not a valid file of constants") as caught:
        Constants.read(path)
    assert "\n" not in f"{caught.value}{translate(caught.value.message, 'zh')}"
    assert str(path) in translate(caught.value.message, "zh")


def test_a_missing_file_of_constants_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        Constants.read(tmp_path / "none.json")
