"""Rows of the training stream as a file, for other programs: training makes its rows as it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from accel_train.arguments import Range
from accel_train.data.synthetic import write_data_set
from accel_train.tasks.collatz.data import Rows
from accel_train.tasks.collatz.numbers import MODES, Numbers, to_int

MAX_LEN = 500


def synth(out: str | Path, seed: int = 0, size: int | None = None) -> str:
    """Write collatz.parquet with n (decimal string), T (int32, exact), mode and tokens (list of uint8, at most 500);
    what to say about it.

    Args:
        out: an empty or new folder; see ``write_data_set``.
        seed: of the stream.
        size: rows (default: 1000).
    """
    size = 1000 if size is None else size
    Range(1).check("size", size)

    def fill(folder: Path) -> dict[str, Any]:
        steps = _write(folder / "collatz.parquet", Rows(Numbers(seed), MAX_LEN, size), seed)
        truth = {"mean_T": float(steps.mean()), "largest_T": int(steps.max())}
        return {"map": "3n+1", "max_len": MAX_LEN, "truth": truth}

    write_data_set(out, seed, size, fill)
    return f"{size:,} rows with exact T in {Path(out) / 'collatz.parquet'}"


def _write(path: Path, rows: Rows, seed: int) -> np.ndarray:
    """Returns T of every row, int32 [N]."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    batch = rows.read(np.arange(len(rows)))
    numbers = to_int(batch["high"].view(np.uint64), batch["low"].view(np.uint64))
    lengths = np.minimum(batch["steps"], rows.max_len)
    kept = np.arange(rows.max_len) < lengths[:, None]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    table = pa.table({
        "n": [str(n) for n in numbers],
        "T": batch["steps"],
        "mode": [MODES[m] for m in batch["mode"]],
        "tokens": pa.ListArray.from_arrays(pa.array(offsets), pa.array(batch["tokens"][kept])),
    })  # fmt: skip
    table = table.replace_schema_metadata({"seed": str(seed), "map": "3n+1"})
    pq.write_table(table, path, write_page_checksum=True)
    return batch["steps"]
