"""A look at muon bundles, and at the files they are in."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from accel_train.data.bad import BadDataPolicy
from accel_train.data.ragged import Ragged, concatenate
from accel_train.data.remote.storage import expand, open_file
from accel_train.tasks.muon.data import kind_of
from accel_train.tasks.muon.layout import MuonLayout
from accel_train.tasks.muon.sources import Files

LOOKED_AT = 1_000_000
QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)


def preview(primary: np.ndarray, counts: np.ndarray, muons: np.ndarray, events: int = 5) -> str:
    """First events and multiplicities. Arguments: [B, 4], [B], [M, 3]."""
    share = (counts == 0).mean() if len(counts) else 0.0
    found = np.quantile(counts, QUANTILES, method="inverted_cdf").astype(int)
    names = [f"{q:.1%}" for q in QUANTILES[:-1]] + ["largest"]
    quantiles = ", ".join(f"{name} {n:,}" for name, n in zip(names, found, strict=True))
    lines = [
        f"events       {len(counts):,}, of which {share:.1%} have no muons; {counts.sum():,} muons",
        f"muons        {quantiles}",
        f"  {'E (GeV)':>10}  {'zenith':>7}  {'mass':>6}  {'depth (m)':>9}  {'muons':>6}  first muon: E (GeV), x, y (m)",
    ]
    ends = np.cumsum(counts)
    for i in range(min(events, len(counts))):
        energy, zenith, mass, depth = primary[i]
        first = muons[ends[i] - counts[i]] if counts[i] else None
        shown = "" if first is None else f"{first[0]:.4g}, {first[1]:.3g}, {first[2]:.3g}"
        lines.append(f"  {energy:>10.4g}  {zenith:>7.3f}  {mass:>6.3g}  {depth:>9.1f}  {counts[i]:>6,}  {shown}")
    return "\n".join(lines)


def describe_files(patterns: list[str], events: int, primary_layout: str, muon_layout: str) -> str:
    """Schema, row groups, first events and multiplicities of each file. Reads at most ``LOOKED_AT`` rows of each."""
    return "\n\n".join(_describe(path, events, MuonLayout(primary_layout, muon_layout)) for path in expand(patterns))


def _describe(path: str, events: int, layout: MuonLayout) -> str:
    kind = kind_of(path)
    reader = Files(layout, BadDataPolicy())
    groups = reader.groups(path)
    lines = [f"{path}: {kind}, {sum(groups):,} rows in {len(groups):,} row groups" + _sizes(groups)]
    if kind == "parquet":
        with pq.ParquetFile(open_file(path)) as file:
            lines += [f"  {field.name:<20} {field.type}" for field in file.schema_arrow]
    read: list[Ragged] = []
    for group, rows in enumerate(groups):
        if rows and sum(map(len, read)) < LOOKED_AT:
            read += reader.blocks(path, group, LOOKED_AT)
    if not read:
        return "\n".join([*lines, "  no rows"])
    found = concatenate(read)
    if len(found) < sum(groups):
        lines.append(f"of the first {len(found):,} rows:")
    return "\n".join([*lines, preview(found.rows["primary"], found.counts, found.flat["muons"], events)])


def _sizes(groups: list[int]) -> str:
    return f" of {min(groups):,} to {max(groups):,}" if groups else ""
