"""Synthetic muon bundles with known truth, in memory and as files in the layouts of the real ones.

One row is one (shower, depth) pair, as in the simulation it stands in for: a shower is thrown once, and its muons are
followed down to every depth, so the rows of a shower are nested. Numbers are stored as float32, and everything is
computed from the stored numbers, so that ``truth`` holds for them exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from accel_train import keyed
from accel_train.data.ragged import Ragged, concatenate
from accel_train.data.synthetic import training_line, write_data_set
from accel_train.errors import UserError
from accel_train.tasks.muon import truth

NUCLEONS = np.array([1, 4, 14, 27, 56])
MASSES = np.array([0.938272, 3.727379, 13.040204, 25.126501, 52.089777])  # GeV/c^2 of the nuclei p, He, N, Al, Fe
WEIGHTS = np.array([10, 5, 3, 2, 1])
MAX_ZENITH_DEG = 85.0
PT_SHAPE, PT_SCALE = 2.0, 0.17  # transverse momentum, Gamma distributed, GeV
PRODUCTION_HEIGHT = 40_000.0  # m; twice the geometric one: the mean radii of Becherini et al., Astropart. Phys. 25, 1
BLOCK = 256  # showers drawn from one generator; they do not depend on how a set is cut into files

Layout = Literal["list", "fixed", "large_list", "hdf5"]


@dataclass(frozen=True)
class Recipe:
    """What showers are thrown.

    Args:
        depths: vertical depths in km, one row each per shower, in this order.
        log10_energy: lowest and highest primary energy, log10 of GeV.
        gamma: dN/dE is proportional to E^-gamma between them.
        outlier: number of one shower that is vertical iron of 1e9 GeV instead (some 20,000 muons at 1 km).
    """

    depths: tuple[float, ...] = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 2.6, 2.8)
    log10_energy: tuple[float, float] = (4.0, 7.0)
    gamma: float = 1.7
    outlier: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(map(float, self.depths)))  # any sequence will do, and goes into JSON
        if not self.depths or not all(0 < depth < 10 for depth in self.depths):
            raise UserError(f"depths: {self.depths} are not kilometres of ice; give one or more above 0 and below 10")
        low, high = self.log10_energy
        if not 2 <= low < high <= 10:
            raise UserError(f"log10_energy: {low}, {high} is not a range of log10(E/GeV) within 2 to 10")


# -- the simulation --------------------------------------------------------------------------------------------------


def simulate(primaries: int, seed: int, **recipe: Any) -> Ragged:
    """Showers 0 to ``primaries`` in memory: one row per shower and depth, depth after depth.

    Args:
        recipe: fields of ``Recipe``. Shower i depends on it and on (seed, i) alone.

    Returns:
        rows "primary" float32 [B, 4] = [E_GeV, zenith_rad, mass_GeV, depth_m], "major" and "minor" uint64 [B] = number
        of the shower; flat "muons" float32 [M, 3] = [E_GeV at the depth, x_m, y_m], in the same order at every depth.
    """
    showers = Recipe(**recipe)
    _check(primaries, showers)
    return concatenate(list(_showers(0, primaries, seed, showers)))


def _check(primaries: int, recipe: Recipe) -> None:
    if primaries < 1:
        raise UserError(f"primaries: {primaries} showers; give at least one")
    if recipe.outlier is not None and not 0 <= recipe.outlier < primaries:
        raise UserError(f"outlier: there is no shower {recipe.outlier} among {primaries}; they count from 0")


def _showers(start: int, stop: int, seed: int, recipe: Recipe) -> Iterator[Ragged]:
    """Showers ``start`` to ``stop``, at most ``BLOCK`` at a time."""
    depths = len(recipe.depths)
    for number in range(start // BLOCK, -(-stop // BLOCK)):
        first = number * BLOCK
        wanted = range(max(start - first, 0) * depths, min(stop - first, BLOCK) * depths)
        yield _block(number, seed, recipe).take(np.array(wanted))


def _block(number: int, seed: int, recipe: Recipe) -> Ragged:
    generator = np.random.Generator(np.random.Philox(key=keyed.key(seed, "muon showers", number)))
    numbers = number * BLOCK + np.arange(BLOCK)
    nucleus = generator.choice(len(NUCLEONS), BLOCK, p=WEIGHTS / WEIGHTS.sum())
    energy = _power_law(generator.random(BLOCK), recipe).astype(np.float32)
    lowest = np.cos(np.radians(MAX_ZENITH_DEG)) ** 2  # a flat area sees cos^2(zenith) uniform
    zenith = np.arccos(np.sqrt(generator.uniform(lowest, 1.0, BLOCK))).astype(np.float32)
    outlier = numbers == recipe.outlier
    nucleus[outlier], energy[outlier], zenith[outlier] = len(NUCLEONS) - 1, 1e9, 0.0
    depth = (1000 * np.array(recipe.depths)).astype(np.float32)
    mass = MASSES[nucleus].astype(np.float32)

    mean = truth.expected_count(energy, mass, zenith, depth.min())
    counts = generator.poisson(mean * generator.gamma(truth.K, 1 / truth.K, BLOCK))
    shower = np.repeat(np.arange(BLOCK), counts)  # of each muon
    u = generator.random(len(shower))
    surface = truth.surface_energies(u, energy[shower], mass[shower], zenith[shower], depth.min())
    pt = generator.gamma(PT_SHAPE, PT_SCALE, len(shower))
    radius = pt / surface * PRODUCTION_HEIGHT / np.cos(zenith[shower].astype(float))
    phi = generator.uniform(0, 2 * np.pi, len(shower))

    energies = truth.energy_at(surface[:, None], zenith[shower, None], depth)  # [muons, depths]
    muon, level = np.nonzero(energies > truth.MIN_ENERGY)
    row = shower[muon] * len(depth) + level
    order = np.argsort(row, kind="stable")
    muon, level = muon[order], level[order]

    per_row = (np.repeat(values, len(depth)) for values in (energy, zenith, mass))
    ids = np.repeat(numbers, len(depth)).astype(np.uint64)
    return Ragged(
        {"primary": np.stack([*per_row, np.tile(depth, BLOCK)], 1), "major": ids, "minor": ids},
        np.bincount(row, minlength=BLOCK * len(depth)),
        {"muons": np.stack([energies[muon, level], (radius * np.sin(phi))[muon], (radius * np.cos(phi))[muon]], 1)
            .astype(np.float32)},
    )  # fmt: skip


def _power_law(u: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Primary energies in GeV from uniform numbers."""
    low, high = recipe.log10_energy
    slope = (1 - recipe.gamma) * np.log(10)
    if slope == 0:
        return 10 ** (low + u * (high - low))
    return 10 ** (low + np.log1p(u * np.expm1(slope * (high - low))) / slope)


# -- files -----------------------------------------------------------------------------------------------------------


def write(
    folder: str | Path,
    seed: int,
    primaries: int = 4000,
    layout: Layout = "list",
    files: int = 1,
    row_group: int = 10_000,
    **recipe: Any,
) -> dict[str, Any]:
    """Write bundles-00000.parquet (or .h5) and so on, and last metadata.json, whose content is returned.

    Its ``truth`` are, for each depth, the means over the showers of ``truth.expected_count`` and ``truth.p_zero``.

    Args:
        folder: empty or new; see ``write_data_set``.
        layout: Parquet with columns primary_major_id, primary_minor_id, primary and muons, where the vectors are
            "list", "large_list" or (primary and each muon) "fixed" size lists of float32; or "hdf5" with float32
            ``primaries`` [n, 6] = major, minor, primary, ``muons`` [m, 5] = major, minor, muon, and int32 ``counts``
            [n], 0 for a row without muons.
        files: the showers are dealt out in order; none crosses a file.
        row_group: rows of a Parquet row group or HDF5 chunk; the last of a file may be shorter.
        recipe: fields of ``Recipe``.
    """
    showers = Recipe(**recipe)
    _check(primaries, showers)
    if layout not in get_args(Layout):
        raise UserError(f"layout: unknown {layout!r}; there are {', '.join(get_args(Layout))}")
    if not 1 <= files <= primaries:
        raise UserError(f"files: {primaries} showers cannot fill {files} files; give 1 to {primaries}")
    if row_group < 1:
        raise UserError(f"row_group: {row_group} rows; give at least one")
    if layout == "hdf5" and primaries > 2**24:
        raise UserError(f"primaries: HDF5 ids are float32 and exact up to {2**24}; write Parquet for {primaries}")
    totals = {"rows": 0, "muons": 0, "rows_without_muons": 0, "most_muons": 0}
    expected = np.zeros((2, len(showers.depths)))  # sums over the showers, by depth: muons, rows without muons

    def counted(parts: Iterable[Ragged]) -> Iterator[Ragged]:
        for part in parts:
            totals["rows"] += len(part)
            totals["muons"] += int(part.counts.sum())
            totals["rows_without_muons"] += int((part.counts == 0).sum())
            totals["most_muons"] = max(totals["most_muons"], int(part.counts.max()))
            energy, zenith, mass, depth = part.rows["primary"].T
            mean = truth.expected_count(energy, mass, zenith, depth).reshape(-1, len(showers.depths))
            expected[:] += mean.sum(0), truth.p_zero(mean).sum(0)
            yield part

    def fill(folder: Path) -> dict[str, Any]:
        names = [f"bundles-{i:05d}.{'h5' if layout == 'hdf5' else 'parquet'}" for i in range(files)]
        for i, name in enumerate(names):
            parts = counted(_showers(primaries * i // files, primaries * (i + 1) // files, seed, showers))
            (_write_hdf5 if layout == "hdf5" else _write_parquet)(folder / name, parts, layout, row_group)
        muons, without = (expected / primaries).tolist()
        return {
            "primaries": primaries, "layout": layout, "row_group": row_group, "files": names, **totals,
            "recipe": asdict(showers), "constants": _constants(),
            "primary": ["energy_GeV", "zenith_rad", "mass_GeV_per_c2", "vertical_depth_m"],
            "muon": ["energy_GeV_at_depth", "x_m", "y_m"],
            "truth": {"depths_km": showers.depths, "muons_per_row": muons, "share_of_rows_without_muons": without},
        }  # fmt: skip

    return write_data_set(folder, seed, primaries, fill)


def synth(out: str | Path, seed: int = 0, size: int | None = None) -> str:
    """The recommended set of ``size`` (20,000) showers at ten depths as list-layout Parquet; what to say about it."""
    size = 20_000 if size is None else size
    about = write(out, seed, size, files=max(1, min(4, size)))
    rows, muons = about["rows"], about["muons"]
    return "\n".join([
        f"{out}: {len(about['files'])} files, {size} showers at {len(about['recipe']['depths'])} depths",
        f"  {rows} rows, {muons} muons; {muons / rows:.2f} per row, at most {about['most_muons']}, "
        f"{about['rows_without_muons'] / rows:.1%} of the rows have none",
        f"  {training_line('examples/muon_small.yaml', {'files': f'{out}/*.parquet'})}",
    ])  # fmt: skip


def _constants() -> dict[str, Any]:
    constants = vars(truth) | globals()
    return {name.lower(): np.asarray(value).tolist() for name, value in constants.items() if name.isupper()}


def _write_parquet(path: Path, parts: Iterator[Ragged], layout: Layout, row_group: int) -> None:
    held = _table(next(parts), layout)
    with pq.ParquetWriter(path, held.schema, write_page_checksum=True) as writer:
        for part in parts:
            held = pa.concat_tables([held, _table(part, layout)])
            while len(held) > row_group:
                writer.write_table(held.slice(0, row_group))
                held = held.slice(row_group)
        writer.write_table(held, row_group)


def _table(part: Ragged, layout: Layout) -> pa.Table:
    lists = pa.LargeListArray if layout == "large_list" else pa.ListArray

    def vectors(values: np.ndarray) -> pa.Array:
        n, width = values.shape
        if layout == "fixed":
            return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
        return lists.from_arrays(np.arange(0, (n + 1) * width, width), values.ravel())

    return pa.table({
        "primary_major_id": part.rows["major"],
        "primary_minor_id": part.rows["minor"],
        "primary": vectors(part.rows["primary"]),
        "muons": lists.from_arrays(part.offsets, vectors(part.flat["muons"])),
    })  # fmt: skip


def _write_hdf5(path: Path, parts: Iterator[Ragged], _: Layout, row_group: int) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        sets = [
            file.create_dataset(name, (0, *width), kind, maxshape=(None, *width), chunks=(row_group, *width))
            for name, width, kind in (("primaries", (6,), "f4"), ("muons", (5,), "f4"), ("counts", (), "i4"))
        ]
        for part in parts:
            ids = np.stack([part.rows["major"], part.rows["minor"]], 1).astype(np.float32)
            primaries = np.concatenate([ids, part.rows["primary"]], 1)
            muons = np.concatenate([np.repeat(ids, part.counts, 0), part.flat["muons"]], 1)
            for data, new in zip(sets, (primaries, muons, part.counts), strict=True):
                data.resize(len(data) + len(new), 0)
                data[len(data) - len(new) :] = new
