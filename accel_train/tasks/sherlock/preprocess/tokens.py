"""How a text becomes tokens, as a tokenizer .json of the two simple kinds says; no library is needed for them.

SentencePiece by byte pairs (Sennrich, Haddow and Birch, ACL 2016): blanks are part of words, the pair that was merged
first is merged first. WordPiece (as in BERT): the longest piece of a word that is known, then the longest of the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from accel_train.errors import DataError

BLANK = "\u2581"
"""What SentencePiece writes for a blank."""
PIECES = re.compile(r"\w+|[^\w\s]")


def read(path: Path, model: dict[str, Any]) -> Callable[[str], list[int]]:
    """From a text to the numbers of its tokens; what is not known has none. ``model``: of the .json.

    Raises:
        DataError: it is of another kind.
    """
    vocabulary: dict[str, int] = model["vocab"] if isinstance(model["vocab"], dict) else {}
    if model.get("type") == "WordPiece" and vocabulary:
        lower = not any(token != token.lower() for token in vocabulary if not token.startswith("["))
        prefix = model.get("continuing_subword_prefix", "##")
        return lambda text: [number for word in PIECES.findall(text.lower() if lower else text)
                             for number in _longest(word, vocabulary, prefix)]  # fmt: skip
    if model.get("type") == "BPE" and any(token.startswith(BLANK) for token in vocabulary):
        pairs = [tuple(each.split(" ")) if isinstance(each, str) else tuple(each) for each in model["merges"]]
        ranks = {pair: rank for rank, pair in enumerate(pairs)}
        return lambda text: [number for word in text.split() for number in _merged(word, vocabulary, ranks)]
    kind = model.get("type", "of no type")
    raise DataError(f"{path}: its tokens are {kind}; WordPiece and SentencePiece BPE are read, for others make vectors "
                    "elsewhere and give them by --features")  # fmt: skip


def _longest(word: str, vocabulary: dict[str, int], prefix: str) -> list[int]:
    """A word of which any piece is unknown has no token."""
    found, first = list[int](), 0
    while first < len(word):
        begins = prefix if first else ""
        last = next((end for end in range(len(word), first, -1) if begins + word[first:end] in vocabulary), None)
        if last is None:
            return []
        found.append(vocabulary[begins + word[first:last]])
        first = last
    return found


def _merged(word: str, vocabulary: dict[str, int], ranks: dict[Any, int]) -> list[int]:
    parts = [BLANK, *word]
    while len(parts) > 1:
        rank, at = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(parts)))
        if rank == len(ranks):
            break
        parts[at : at + 2] = ["".join(parts[at : at + 2])]
    return [vocabulary[part] for part in parts if part in vocabulary]
