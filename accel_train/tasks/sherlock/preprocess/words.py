"""Vectors of texts: hashed words and pairs of words, weighed by how rare they are, or vectors of a local model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.errors import DataError
from accel_train.tasks.sherlock.libraries import library
from accel_train.tasks.sherlock.preprocess import tokens

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


def hashed(texts: Sequence[str], dim: int) -> np.ndarray:
    """float64 [texts, dim]: how often each word and each pair of neighbouring words is there, each at a place and with
    a sign that are its hash's."""
    out = np.zeros((len(texts), dim))
    for row, text in enumerate(texts):
        words = WORD.findall(text.lower())
        for token in [*words, *map(" ".join, pairwise(words))]:
            number = int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest(), "little")
            out[row, (number >> 1) % dim] += 1 if number & 1 else -1
    return out


def inverse_frequencies(counts: np.ndarray) -> np.ndarray:
    """float64 [dim]: log((1 + n) / (1 + those that have it)) + 1 over the rows of ``counts`` [n, dim]."""
    return np.log((1 + len(counts)) / (1 + (counts != 0).sum(0))) + 1


def unit(vectors: np.ndarray) -> np.ndarray:
    """Each row of length 1; zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def embedded(texts: Sequence[str], model: Path) -> np.ndarray:
    """float64 [texts, D] of a local folder: the mean of static vectors of the tokens (one .safetensors with one matrix
    and a tokenizer .json, anywhere below it), or what a sentence-transformers folder gives.

    Raises:
        UserError: a library is missing. DataError: the folder holds neither, or another kind of tokens.
    """
    if (model / "modules.json").is_file():
        transformer = library("sentence_transformers").SentenceTransformer(str(model), device="cpu")
        return np.asarray(transformer.encode(list(texts)), np.float64)
    matrix, encode = _static(model)
    return np.stack([matrix[ids].mean(0) if (ids := encode(text)) else np.zeros(matrix.shape[1]) for text in texts])


def _static(folder: Path) -> tuple[np.ndarray, Callable[[str], list[int]]]:
    """The vectors of all tokens, and how a text becomes tokens."""
    from safetensors.numpy import load_file

    weights = sorted(folder.rglob("*.safetensors"))
    described = [path for path in sorted(folder.rglob("*.json")) if "vocab" in _model(path)]
    if len(weights) != 1 or len(described) != 1:
        raise DataError(f"{folder}: holds {len(weights)} .safetensors and {len(described)} .json of a tokenizer; a "
                        "folder of static vectors has one of each")  # fmt: skip
    matrices = [array for array in load_file(weights[0]).values() if array.ndim == 2]
    encode = tokens.read(described[0], _model(described[0]))
    if len(matrices) != 1 or len(matrices[0]) < len(_model(described[0])["vocab"]):
        raise DataError(f"{weights[0]}: must hold one matrix with a row for each token of {described[0].name}")
    return matrices[0].astype(np.float64), encode


def _model(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found.get("model") or {} if isinstance(found, dict) else {}
