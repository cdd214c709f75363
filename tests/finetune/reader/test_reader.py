"""Rows that a reader is trained on, its weights' file, and a training that continues exactly."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from finetune.reader import train as training
from finetune.reader.examples import (
    HELD_OUT,
    ReaderQuestion,
    TrainingRow,
    best_occurrence,
    held_out,
    training_rows,
)
from finetune.reader.model import ReaderModel, losses
from finetune.reader.train import batch_of, in_order, train
from ingest.embed.e5 import BundledEmbedder, open_embedder
from ingest.types import Chunk
from rag.reader import RowBuilder, best_span, open_reader, weights_file

BUNDLED = weights_file("bundled").read_bytes()
OPTIONS = {"epochs": 1, "rate": 1e-3, "batch": 6, "seed": 0}


@pytest.fixture(scope="module")
def encoder() -> BundledEmbedder:
    found = open_embedder(threads=1)
    assert isinstance(found, BundledEmbedder)
    return found


@pytest.fixture(scope="module")
def builder(encoder: BundledEmbedder) -> RowBuilder:
    return RowBuilder(encoder.pieces, most=64)


def chunk(town: int, year: int) -> Chunk:
    text = f"{year}年，第{town}号城建了{town + 2 + year % 7}座桥。这座城以茶叶闻名。那时出口了很多。"
    title = f"第{town}号城"
    return Chunk(str(town), f"{town}.md", title, (), title, year, year + len(text), text, (year, year + 50))


def questions() -> list[ReaderQuestion]:
    chunks = [chunk(town, year) for town in range(6) for year in (1900, 1950)]
    result = []
    for right in chunks:
        start = right.text.index("建了") + 2
        span = (start, right.text.index("座桥") + 2)
        asked = f"{right.text[:4]}年{right.title}建了几座桥？"
        near = sorted(chunks, key=lambda each: each.title != right.title)
        result.append(ReaderQuestion(asked, [right.text[slice(*span)]], right, span, near))
        result.append(ReaderQuestion(f"{right.title}的市长是谁？", [], None, (0, 0), near))
    return result


@pytest.fixture(scope="module")
def rows(builder: RowBuilder) -> list[TrainingRow]:
    return list(training_rows(questions(), builder, second=1.0))


def test_answered_rows_point_to_the_answer(rows: Sequence[TrainingRow], encoder: BundledEmbedder) -> None:
    answered = [row for row in rows if row.kind == "answered"]
    assert len(answered) == 12
    for row in answered:
        first, last = row.answer
        assert encoder.pieces.Decode(row.row.ids[first : last + 1]).endswith("座桥")


def test_the_other_rows_have_no_answer_and_all_kinds_occur(rows: Sequence[TrainingRow]) -> None:
    kinds = {row.kind for row in rows}
    assert kinds == {"answered", "unanswerable", "document", "corpus", "cut", "changed"}
    assert all(row.answer == (0, 0) for row in rows if row.kind != "answered")
    assert 0.15 < np.mean([row.kind == "answered" for row in rows]) < 0.6


def test_no_row_without_an_answer_shows_one(builder: RowBuilder) -> None:
    asked = questions()[0]
    near = [asked.right, chunk(0, 1907), chunk(1, 1900)]  # the second has the answer, too
    asked = ReaderQuestion(asked.text, asked.answers, asked.right, asked.span, [c for c in near if c])
    made = list(training_rows([asked] * 20, builder, second=1.0))
    assert "document" not in {row.kind for row in made}
    assert "corpus" in {row.kind for row in made}


def test_the_occurrence_is_in_the_sentence_that_the_question_is_about() -> None:
    text = "押金为三十日的租金。试用期不得超过三十日。"
    assert best_occurrence(text, ["三十日"], "试用期最长多久") == (17, 20)
    assert best_occurrence(text, ["三十日"], "押金是多少") == (3, 6)
    assert best_occurrence(text, ["四十日"], "押金是多少") is None


def test_questions_are_held_out_by_document() -> None:
    known = {str(k): each for k, each in enumerate(questions())}
    held = held_out(known, 1)
    documents = [{q.right.document for id, q in known.items() if q.right and (id in held) is is_held}
                 for is_held in (True, False)]  # fmt: skip
    assert documents[0]
    assert not documents[0] & documents[1]
    few = {id: q for id, q in known.items() if not q.right or int(q.right.document) < 2}
    answered = sum(few[id].right is not None for id in held_out(few, 1))
    assert answered == int(HELD_OUT * 4)


def test_a_batch_has_the_rows_and_nothing_of_their_padding(rows: Sequence[TrainingRow]) -> None:
    batch = batch_of(rows)
    sizes = batch["mask"].sum(1).tolist()
    for k, row in enumerate(rows):
        assert batch["ids"][k, : sizes[k]].tolist() == row.row.ids
    assert not (batch["allowed"] * (1 - batch["mask"])).any()


def test_every_epoch_has_every_row_once_and_batches_are_of_one_length(rows: list[TrainingRow]) -> None:
    order = in_order(rows, epochs=2, batch=4, seed=0)
    assert sorted(map(id, order)) == sorted([*map(id, rows)] * 2)
    spread = [len(order[k + 3].row.ids) - len(order[k].row.ids) for k in range(0, len(order) - 4, 4)]
    assert np.mean(spread) < 3


def test_rows_without_a_span_do_not_teach_one() -> None:
    spans = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(1))
    none, _ = losses(spans, torch.zeros(3), torch.zeros(3, 2, dtype=torch.long))
    expected = -spans.log_softmax(1)[:, 0].sum() / 2 / 3
    assert torch.allclose(none, expected)


class Killed(Exception):
    """The process ended."""


@pytest.fixture(scope="module")
def trained(rows: list[TrainingRow], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The weights after two steps, once without a stop, once stopped after the first."""
    folders = [tmp_path_factory.mktemp(name) for name in ("whole", "broken")]
    some = random.Random(0).sample(rows, 12)

    def stop(step: int) -> None:
        if step == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        whole = train(some, BUNDLED, folders[0], **OPTIONS)
        patch.setattr(training, "_PAUSE", 0.0)
        with pytest.raises(Killed):
            train(some, BUNDLED, folders[1], **OPTIONS, progress=stop)
        assert list(folders[1].glob("*/checkpoint-1/trainer_state.json"))
        return whole, train(some, BUNDLED, folders[1], **OPTIONS)


def test_a_training_that_was_stopped_ends_in_the_same_bytes(trained: tuple[Path, Path]) -> None:
    whole, broken = trained
    assert whole.read_bytes() == broken.read_bytes() != BUNDLED
    assert [path.name for path in broken.parent.iterdir()] == [whole.name]


@pytest.fixture(scope="module")
def model(trained: tuple[Path, Path]) -> ReaderModel:
    return ReaderModel(load(trained[0].read_bytes())).eval()


def test_a_model_is_exported_as_it_was_loaded(model: ReaderModel, trained: tuple[Path, Path]) -> None:
    before, after = load(trained[0].read_bytes()), model.export()
    assert before.keys() == after.keys() == load(BUNDLED).keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert all(before[name].dtype == values.dtype for name, values in load(BUNDLED).items())
    lower = model.encoder.encoder.layer[: model.frozen]
    assert not any(parameter.requires_grad for parameter in lower.parameters())


def test_torch_and_onnx_agree(
    model: ReaderModel, trained: tuple[Path, Path], encoder: BundledEmbedder
) -> None:
    reader, builder = open_reader(str(trained[0].parent), encoder), RowBuilder(encoder.pieces)
    for question in questions()[:4]:
        right = question.nearest[0]
        row = builder.row(question.text, right.context, right.text)
        batch = batch_of([TrainingRow(row, (0, 0), "")])
        with torch.no_grad():
            found = model(**batch)
        (reading,) = reader.read(question.text, [right])
        spans = (found["spans"][0] - found["spans"][0, 0])[row.first : row.first + len(row.offsets)].numpy()
        theirs = np.stack([reading.starts, reading.ends], 1)
        assert np.corrcoef(spans.ravel(), theirs.ravel())[0, 1] > 0.99
        answerable = reading.score - best_span(reading).margin / 2
        # The graph has its weights in 8 bits; how much that changes depends on what was learnt.
        assert found["answerable"].item() == pytest.approx(answerable, abs=0.6)
