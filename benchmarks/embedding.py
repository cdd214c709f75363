"""Passages a second: the bundled encoder against sentence-transformers in float32, same weights.

    python benchmarks/embedding.py [--passages 96] [--sets FOLDER]

Writes the rebuilt weights as a Hugging Face checkpoint to a temporary folder, and cuts passages of
about 150 tokens out of `corpora/`. The encoders take turns; medians of three rounds.

With `--sets`, a Markdown table follows: what passages in int8 cost against passages in float32 on
every folder with `corpus.jsonl`, `queries.jsonl` and `qrels.tsv` in FOLDER, by exact search with
the same questions. Passages longer than the window are cut at it, in both alike.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from ingest.embed import Embedder, Vectors, e5, e5_graph, open_embedder
from ingest.embed.e5 import BundledEmbedder
from ingest.parse import DocumentParser

ROOT = Path(__file__).parents[1]
MODULES = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "output.LayerNorm": "oln",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--passages", type=int, default=96)
    parser.add_argument("--sets", type=Path)
    options = parser.parse_args()
    speed(open_embedder(), options.passages)
    if options.sets:
        retrieval(options.sets)


def speed(embedder: Embedder, count: int) -> None:
    from sentence_transformers import SentenceTransformer

    texts = passages(embedder, count)
    with TemporaryDirectory() as folder:
        checkpoint(Path(folder))
        peer = SentenceTransformer(folder, device="cpu", local_files_only=True)

    def peers(batch: Sequence[str]) -> Vectors:
        return peer.encode([f"passage: {text}" for text in batch], normalize_embeddings=True)

    encoders = {"sentence-transformers float32": peers, "bundled": embedder.embed_passages}
    rates: dict[str, list[float]] = {name: [] for name in encoders}
    vectors = {name: encode(texts[:8]) for name, encode in encoders.items()}  # a warm-up
    for _ in range(3):
        for name, encode in encoders.items():
            rates[name].append(rate(encode, texts))
    slow, fast = (float(np.median(rates[name])) for name in encoders)
    alike = (vectors["bundled"] * vectors["sentence-transformers float32"]).sum(axis=1).min()
    tokens = np.mean(embedder.count_many(texts))
    sys.stdout.write(
        f"{len(texts)} passages of {tokens:.0f} tokens: sentence-transformers {slow:.1f}/s, "
        f"bundled {fast:.1f}/s, {fast / slow:.2f} times; least cosine {alike:.4f}\n"
    )


def retrieval(folder: Path) -> None:
    embedder = open_embedder()
    assert isinstance(embedder, BundledEmbedder)
    # The same encoder with the questions' float32 graph for passages too.
    exact = BundledEmbedder(embedder.folder, threads=1)
    exact._sessions["int8", 1] = exact._session("float32", 1)
    sys.stdout.write("\n| set | float32 R@1 / R@5 / nDCG@10 | int8 minus float32 | least cosine |\n")
    sys.stdout.write("| --- | --- | --- | --- |\n")
    for path in sorted(file.parent for file in folder.glob("*/corpus.jsonl")):
        corpus, asked = records(path / "corpus.jsonl"), records(path / "queries.jsonl")
        asked = [query for query in asked if query["answerable"]]
        pairs = {tuple(line.split("\t")[:2]) for line in (path / "qrels.tsv").open()}
        wanted = np.array([[(q["_id"], c["_id"]) in pairs for c in corpus] for q in asked])
        texts = [fitting(embedder, f"{c['title']}\n{c['text']}".strip()) for c in corpus]
        questions = np.array([embedder.embed_query(query["text"]) for query in asked])
        ours, base = embedder.embed_passages(texts), exact.embed_passages(texts)
        before, after = (measures(questions @ vectors.T, wanted) for vectors in (base, ours))
        sys.stdout.write(
            f"| {path.name} | {' / '.join(f'{value:.3f}' for value in before)} "
            f"| {' / '.join(f'{value:+.4f}' for value in after - before)} "
            f"| {(ours * base).sum(axis=1).min():.5f} |\n"
        )
        sys.stdout.flush()


def measures(scores: Vectors, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """R@1 and R@5 as success, and nDCG@10, over the questions."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    found = np.take_along_axis(wanted, top, axis=1)
    gains = 1 / np.log2(np.arange(2, 12))
    ideal = np.cumsum(gains)[np.minimum(wanted.sum(axis=1), 10) - 1]
    ndcg = (found * gains).sum(axis=1) / ideal
    return np.array([found[:, 0].mean(), found[:, :5].any(axis=1).mean(), ndcg.mean()])


def fitting(embedder: Embedder, text: str) -> str:
    """The longest beginning of `text` that the window holds."""
    low, high = 0, len(text) + 1  # `low` characters fit, `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        fits = embedder.count(text[:middle]) <= embedder.max_tokens
        low, high = (middle, high) if fits else (low, middle)
    return text[:low]


def records(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def rate(encode: Callable[[Sequence[str]], Vectors], texts: Sequence[str]) -> float:
    start = time.perf_counter()
    encode(texts)
    return len(texts) / (time.perf_counter() - start)


def passages(embedder: Embedder, count: int) -> list[str]:
    """Pieces of 150 tokens of the Markdown in `corpora/`, the same ones at every run."""
    found: list[str] = []
    for file in sorted(ROOT.glob("corpora/*/docs/*.md")):
        text = "".join(segment.text for segment in DocumentParser().parse(file).segments)
        for at in range(0, len(text) - 400, 400):
            piece = text[at : at + 400]
            keep = len(piece) * 150 // max(150, embedder.count(piece))
            found.append(piece[:keep])
    return found[:: max(1, len(found) // count)][:count]


def checkpoint(folder: Path) -> None:
    """The data file's weights as a BertModel with its tokenizer, in float32."""
    import torch
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    data = e5_graph.read(e5.data_file())
    config = BertConfig(
        vocab_size=250037,
        hidden_size=384,
        num_hidden_layers=data.layers,
        num_attention_heads=data.heads,
        intermediate_size=1536,
        max_position_embeddings=512,
        type_vocab_size=2,
        layer_norm_eps=data.epsilon,
        pad_token_id=1,
    )

    def tensor(name: str) -> torch.Tensor:
        matrix = data.matrices.get(name)
        array = data.vectors[name] if matrix is None else matrix.dequantize()
        return torch.tensor(np.array(array))

    state = {
        "embeddings.word_embeddings.weight": tensor("emb.word"),
        "embeddings.position_embeddings.weight": tensor("emb.pos"),
        "embeddings.token_type_embeddings.weight": tensor("emb.type"),
    }
    for ours, theirs in (("w", "weight"), ("b", "bias")):
        state[f"embeddings.LayerNorm.{theirs}"] = tensor(f"emb.ln.{ours}")
        for layer in range(data.layers):
            for module, part in MODULES.items():
                name = f"encoder.layer.{layer}.{module}.{theirs}"
                state[name] = tensor(f"l{layer}.{part}.{ours}")
    model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict(state, strict=True)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(data),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=512,
    ).save_pretrained(folder)


def tokenizer(data: e5_graph.E5Checkpoint):
    from sentencepiece import SentencePieceNormalizer, sentencepiece_model_pb2
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = list(zip(data.pieces, data.scores.tolist(), strict=True))
    made = Tokenizer(models.Unigram(pieces, 3, False))
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_model_proto())
    made.normalizer = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    made.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


if __name__ == "__main__":
    main()
