"""``accel-train muon generate``: conditions in, bundles out, in the schema that training reads."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from accel_train import keyed
from accel_train.command import Parser, add_weights, refuse_existing
from accel_train.data.bad import BadRows
from accel_train.data.formats.arrow import column, vectors
from accel_train.data.ragged import Ragged
from accel_train.errors import DataError, UserError
from accel_train.system.writing import refuse_unwritable, replacing, writing
from accel_train.tasks.muon.data import SCHEMA, table

ROWS = 10_000
"""Events generated at once and rows of a row group."""

MUONS = 2_000_000
"""At most so many muons at once through the generator."""

FLAT = ("E", "zenith", "mass", "depth")


def run(options: argparse.Namespace) -> int:
    """Generate; prints one line per file."""
    from accel_train.data.remote.storage import expand

    if options.counts_mode == "constant" and (options.count_constant is None or options.count_constant < 0):
        raise UserError("generate: --counts_mode=constant needs --count_constant=N, at least 0")
    if options.counts_mode == "column" and not options.counts_column:
        raise UserError("generate: --counts_mode=column needs --counts_column=NAME (muons: as many as there are)")
    sources = expand(options.conditions)
    targets = [options.out / f"{Path(path).stem}.generated.parquet" for path in sources]
    if len(set(targets)) < len(targets):
        raise UserError("generate: two inputs have the same name; generate them into folders of their own")
    refuse_unwritable("--out", options.out)
    for target in targets:
        refuse_existing("generate", target)
    from accel_train.run.saved import find_saved

    saved = find_saved(options.run, options.checkpoint, trust=options.trust)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    models = {name: model.eval().to(device) for name, model in saved.load_models().items()}
    first = 0
    with writing("--out", options.out):
        options.out.mkdir(parents=True, exist_ok=True)
        for path, target in zip(sources, targets, strict=True):
            rows, muons = _generate_file(path, target, models, options, saved.task.init_args["max_count"], first)
            print(f"{target}  {rows:,} events, {muons:,} muons")
            first += rows
    return 0


def add_arguments(parser: Parser) -> None:
    add_weights(parser)
    parser.add_argument("--conditions", nargs="+", required=True, help="Parquet files or patterns with a column "
                        f"'primary', or flat columns {', '.join(FLAT)}")  # fmt: skip
    parser.add_argument("--primary_layout", default="auto", help="what the numbers of 'primary' are, as in training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--counts_mode", choices=("predict", "column", "constant"), default="predict")
    parser.add_argument("--counts_column", help="integers, or 'muons' for as many as the input has")
    parser.add_argument("--count_constant", type=int)
    parser.add_argument("--max_muons_per_event", type=int, help="no bundle has more (default: the task's max_count)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="default: a GPU where there is one")


def _generate_file(
    path: str, target: Path, models: dict[str, nn.Module], options: argparse.Namespace, max_count: int, first: int
) -> tuple[int, int]:
    """(events, muons) written; the file appears when it is whole. ``first`` is the number of its first event."""
    cap = min(max_count, options.max_muons_per_event or max_count)
    events = muons = 0
    with (
        replacing(target) as temporary,
        contextlib.closing(_rows(path)) as batches,
        pq.ParquetWriter(temporary, SCHEMA, write_page_checksum=True) as writer,
    ):
        for batch in batches:
            given = _conditions(batch, path, options.primary_layout, events)
            primary = torch.tensor(given)  # a copy: Arrow's memory cannot be written to
            number = np.arange(first + events, first + events + len(batch))
            key = torch.from_numpy(keyed.bits(keyed.key(options.seed, "generate"), number)[:, 0].view(np.int64))
            for part in _bundles(models, primary, key, _counts(batch, options, path), cap):
                writer.write_table(table(part))
                muons += int(part.counts.sum())
            events += len(batch)
    return events, muons


def _rows(path: str) -> Generator[pa.RecordBatch]:
    from accel_train.data.remote.storage import open_file

    try:
        with pq.ParquetFile(open_file(path), page_checksum_verification=True) as source:
            yield from source.iter_batches(ROWS)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}".splitlines()[0]) from None


@torch.no_grad()
def _bundles(
    models: dict[str, nn.Module], primary: torch.Tensor, key: torch.Tensor, counts: torch.Tensor | None, cap: int
) -> Iterator[Ragged]:
    from accel_train.tasks.muon.evaluation import draw_counts, generate
    from accel_train.tasks.muon.task import cut

    device = next(models["generator"].parameters()).device
    primary, key = primary.to(device), key.to(device)
    counts = (draw_counts(models, primary, key) if counts is None else counts.to(device)).clamp(max=cap)
    cuts = cut(counts.cpu().numpy(), len(counts), MUONS)
    for a, b in itertools.pairwise(cuts):
        made, muons = generate(models, primary[a:b], key[a:b], cap, counts[a:b])
        yield Ragged(
            {"primary": primary[a:b].cpu().numpy()}, made.cpu().numpy(), {"muons": muons.float().cpu().numpy()}
        )


def _conditions(batch: pa.RecordBatch, path: str, layout: str, first: int) -> np.ndarray:
    """float32 [B, 4] = E [GeV], zenith [rad], mass, depth [m]; ``first`` is the row that they begin with."""
    from accel_train.tasks.muon.layout import primaries

    try:
        if "primary" in batch.schema.names:
            return primaries(vectors(column(batch, "primary"), "primary"), layout)
        flat = np.stack([column(batch, name).to_numpy(zero_copy_only=False) for name in FLAT], 1)
        return primaries(flat.astype(np.float32), ",".join(FLAT))
    except BadRows as error:
        raise DataError(f"{path}, row {first + error.rows[0]}: {error.reason}") from None
    except DataError as error:
        what = f"a column 'primary' or the columns {', '.join(FLAT)}"
        raise DataError(f"{path}: {error}; conditions are {what}") from None


def _counts(batch: pa.RecordBatch, options: argparse.Namespace, path: str) -> torch.Tensor | None:
    if options.counts_mode == "predict":
        return None
    if options.counts_mode == "constant":
        return torch.full((len(batch),), options.count_constant)
    values = column(batch, options.counts_column)
    if pa.types.is_nested(values.type):
        values = values.value_lengths()
    if values.null_count or not pa.types.is_integer(values.type):
        raise DataError(f"{path}: column {options.counts_column!r} must hold integers without nulls")
    counts = values.to_numpy(zero_copy_only=False).astype(np.int64)
    if (counts < 0).any():
        raise DataError(f"{path}: column {options.counts_column!r} has a negative count")
    return torch.from_numpy(counts)
