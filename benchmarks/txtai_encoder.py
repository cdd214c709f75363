"""Our bundled encoder as txtai's `transform`, for benchmarks/serve.py: same file, same tokens.

ROLE is `query` or `passage`, as the encoder wants to know.
"""

import os
from pathlib import Path

import numpy as np

from ingest.embed.bundled import open_bundled

encoder = open_bundled(Path(os.environ["CACHE"]), threads=1)
passages = os.environ["ROLE"] == "passage"


def encode(texts: list[str]) -> np.ndarray:
    if passages:
        return encoder.embed_passages(texts)
    return np.stack([encoder.embed_query(text) for text in texts])
