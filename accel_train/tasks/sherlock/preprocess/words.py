"""Vectors of texts: hashed words and pairs of words, weighed by how rare they are, or vectors of a local model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.errors import DataError, UserError
from accel_train.tasks.sherlock.libraries import library

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
        UserError: a library is missing. DataError: the folder holds neither.
    """
    if (model / "modules.json").is_file():
        transformer = library("sentence_transformers").SentenceTransformer(str(model), device="cpu")
        return np.asarray(transformer.encode(list(texts)), np.float64)
    matrix, encode = _static(model)
    return np.stack([matrix[ids].mean(0) if (ids := encode(text)) else np.zeros(matrix.shape[1]) for text in texts])


def _static(folder: Path) -> tuple[np.ndarray, Any]:
    from safetensors.numpy import load_file

    weights, tokenizers = sorted(folder.rglob("*.safetensors")), sorted(folder.rglob("*tokenizer*.json"))
    tokenizers = [path for path in tokenizers if '"vocab"' in path.read_text(encoding="utf-8")]
    if len(weights) != 1 or len(tokenizers) != 1:
        raise DataError(f"{folder}: holds {len(weights)} .safetensors and {len(tokenizers)} tokenizer .json with a "
                        "vocabulary; a folder of static vectors has one of each")  # fmt: skip
    matrices = [array for array in load_file(weights[0]).values() if array.ndim == 2]
    if len(matrices) != 1:
        raise DataError(f"{weights[0]}: holds {len(matrices)} matrices, one is the vectors of all tokens")
    matrix = matrices[0].astype(np.float64)
    try:
        tokenizer = library("tokenizers").Tokenizer.from_file(str(tokenizers[0]))
    except UserError as error:
        raise UserError(f"--text_model: {error}") from None
    if tokenizer.get_vocab_size() > len(matrix):
        raise DataError(f"{folder}: {tokenizer.get_vocab_size()} tokens, but {len(matrix)} vectors")
    return matrix, lambda text: tokenizer.encode(text, add_special_tokens=False).ids
