"""Measuring works from end to end, and a really built knowledge base is as large as foretold."""

from pathlib import Path

import pytest

from ingest.chunk import Chunker
from ingest.embed import open_embedder
from ingest.errors import UserError
from ingest.store import Identity, open_store
from ingest.store.atomic import taken
from rag.plan import documents
from rag.plan.constants import Constants, shipped
from rag.plan.made import DIM, Made, build
from rag.plan.measure import Effort, line, measure, scanned
from rag.plan.model import files

LAWS = Path(__file__).parents[3] / "corpora" / "laws" / "docs"
SMALL = Effort((200, 400), scanned=8_000, embedded=4, written=300, questions=4)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Constants:
    told: list[str] = []
    made = measure(
        sorted(LAWS.iterdir())[:3],
        cache=Path.home() / ".cache" / "chatglm-rag",
        tell=lambda en, zh: told.append(f"{en} {zh}"),
        effort=SMALL,
        scratch=tmp_path_factory.mktemp("scratch"),
    )
    assert len(told) >= 6
    return made


def test_everything_is_measured_and_can_be_kept(measured: Constants, tmp_path: Path) -> None:
    measured.write(tmp_path / "constants.json")
    assert Constants.read(tmp_path / "constants.json") == measured
    assert [point.chunks for point in measured.points] == [200, 400]
    assert measured.points[0].truth < measured.points[1].truth
    assert measured.costs.process > 50_000_000  # Python, ONNX Runtime and the encoder
    assert 0 < measured.cores_speedup <= 1


def test_a_knowledge_base_is_as_large_as_foretold(tmp_path: Path) -> None:
    """Within a third, by the constants that are shipped, of other documents than they are of."""
    embedder = open_embedder()
    chunker = Chunker(embedder.count_many, embedder.max_tokens)
    _, texts = documents.read([LAWS], chunker, ocr=False)
    stored = documents.write(texts, tmp_path / "kb", Identity("made", DIM), least=2_000)
    with open_store(tmp_path / "kb") as store:
        chunks = store.count()
    foretold = files(shipped().costs, chunks)
    real = (tmp_path / "kb" / "kb.sqlite").stat().st_size, taken(tmp_path / "kb" / "words")
    assert foretold["truth"] == pytest.approx(real[0], rel=0.33)
    assert foretold["words"] == pytest.approx(real[1], rel=0.33)
    assert stored.truth * chunks == pytest.approx(real[0], rel=0.01)


def test_codes_are_as_large_as_foretold_and_take_time_by_their_number() -> None:
    seconds, size = scanned(8_000)
    assert seconds > 0
    assert size == pytest.approx(shipped().costs.codes, rel=0.2)


def test_made_knowledge_bases_grow_by_what_is_asked(tmp_path: Path) -> None:
    with open_store(tmp_path / "kb", create=Identity("made", DIM)) as store:
        made = Made(100)
        assert [count for count, _ in build(store, made, 60)] == [60]
        assert [count for count, _ in build(store, made, 100)] == [100]
        assert store.count() == 100


def test_a_line_is_found_and_kept_above_nothing() -> None:
    slope, height = line([1, 2, 3], [5, 7, 9])
    assert slope == pytest.approx(2)
    assert height == pytest.approx(3)
    assert min(line([1, 2], [5, 1])) > 0
    assert line([4, 4], [8, 8])[0] == pytest.approx(2)


def test_nothing_to_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\x7fELF" + bytes(100))
    embedder = open_embedder()
    chunker = Chunker(embedder.count_many, embedder.max_tokens)
    with pytest.raises(UserError, match="nothing in"):
        documents.read([tmp_path / "a.bin"], chunker, ocr=False)
