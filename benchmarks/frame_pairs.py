"""What reading pairs of frames costs: pairs per second, beside torch_geometric's Data and DataLoader and a memory copy.

    python benchmarks/frame_pairs.py [--frames 12000] [--rounds 7]

The data: 12,000 frames of 200 atoms with 20 neighbours each, mapped from files in the page cache; 32 pairs per batch,
in random order. Rounds are interleaved, and a ratio is taken within a round. The memory copy moves the bytes of a batch
from one place to another. "first time" is the first epoch, when every frame is also checked. torch_geometric gets
either edges with their distance, or with the 50 Gaussians that the model makes of it, and a worker process where the
loader has a thread. It need not be installed: pip install torch-geometric, or its rows are left out.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from accel_train.data.loader import Loader
from accel_train.plan import Position
from accel_train.system.memory import keep_freed
from accel_train.tasks.gdynet.data import FramePairs, FrameSource, load

ATOMS, NEIGHBOURS, PAIRS, TAU = 200, 20, 32, 10
CUTOFF, GAUSSIANS = 6.0, 50
SLOW = 6  # batches a round of what is slow

Batches = Iterator[int]  # pairs of each


def generate(folder: Path, frames: int) -> None:
    draw, atoms = np.random.default_rng(0), np.arange(ATOMS)
    others = (atoms[:, None] + 1 + np.arange(NEIGHBOURS)) % ATOMS
    np.save(folder / "atom_types.npy", draw.integers(1, 90, ATOMS).astype(np.int32))
    np.save(folder / "target_index.npy", atoms[::5].astype(np.int32))
    np.save(folder / "nbr_lists.npy", np.broadcast_to(others.astype(np.int32), (frames, *others.shape)))
    np.save(folder / "nbr_dists.npy", draw.uniform(1, CUTOFF, (frames, *others.shape)).astype(np.float32))


# -- ours ------------------------------------------------------------------------------------------------------------


def copies(batch: dict[str, np.ndarray], batches: int) -> Batches:
    places = {name: np.empty_like(array) for name, array in batch.items()}
    for _ in range(batches):
        for name, array in batch.items():
            np.copyto(places[name], array)
        yield PAIRS


def reads(pairs: FramePairs) -> Batches:
    source = FrameSource(pairs, PAIRS)
    for step in range(source.steps(0) or 0):
        yield len(pairs.read(source.indices(0, step))["pair"])


def refills(pairs: FramePairs) -> Batches:
    """The same into arrays that are there already."""
    source, trajectory = FrameSource(pairs, PAIRS), pairs.trajectories[0]
    mapped = {"neighbours": trajectory.nbr_lists, "distances": trajectory.nbr_dists}
    old = {name: np.empty_like(array) for name, array in pairs.read(np.arange(PAIRS)).items() if name in mapped}
    for step in range(source.steps(0) or 0):
        first = source.indices(0, step)
        for name, array in old.items():
            mapped[name].take(np.add.outer(first, pairs.lags), axis=0, out=array[: len(first)], mode="clip")
        yield len(first)


def loads(pairs: FramePairs, threads: int) -> Batches:
    loader = Loader(FrameSource(pairs, PAIRS), torch.device("cpu"), num_workers=threads)
    for _, _, batch in loader.batches(Position(), last_epoch=1):
        assert batch is not None
        yield len(batch["pair"])


# -- torch_geometric -------------------------------------------------------------------------------------------------


class Items(torch.utils.data.Dataset):
    """Pairs of graphs: what a dataset for a graph library looks like."""

    def __init__(self, folder: Path, gaussians: bool) -> None:
        self.types = torch.from_numpy(np.load(folder / "atom_types.npy").astype(np.int64))
        self.lists = np.load(folder / "nbr_lists.npy", mmap_mode="r")
        self.dists = np.load(folder / "nbr_dists.npy", mmap_mode="r")
        self.centres = torch.arange(ATOMS).repeat_interleave(NEIGHBOURS)
        self.means = torch.linspace(0, CUTOFF, GAUSSIANS) if gaussians else None

    def __len__(self) -> int:
        return len(self.lists) - TAU

    def __getitem__(self, i: int):
        return self.graph(i), self.graph(i + TAU)

    def graph(self, frame: int):
        from torch_geometric.data import Data

        others = torch.from_numpy(self.lists[frame].astype(np.int64)).reshape(-1)
        edges = torch.from_numpy(np.array(self.dists[frame])).reshape(-1, 1)
        if self.means is not None:
            edges = torch.exp(-0.5 * ((edges - self.means) / self.means[1]) ** 2)
        return Data(x=self.types, edge_index=torch.stack([self.centres, others]), edge_attr=edges)


def geometric(items: Items, workers: int) -> Batches:
    from torch_geometric.loader import DataLoader

    batches = iter(DataLoader(items, PAIRS, shuffle=True, num_workers=workers))
    for _, (now, _) in zip(range(SLOW), batches, strict=False):
        yield now.num_graphs


def same_edges(items: Items, pairs: FramePairs) -> None:
    """Both deliver the same pair."""
    ours = pairs.read(np.array([3]))
    for graph, lists, dists in zip(items[3], ours["neighbours"][0], ours["distances"][0], strict=True):
        assert (graph.edge_index[1].numpy() == lists.ravel()).all()
        assert (graph.edge_attr[:, 0].numpy() == dists.ravel()).all()


# -- measuring -------------------------------------------------------------------------------------------------------


def rate(batches: Batches) -> float:
    started = time.perf_counter()
    pairs = sum(batches)
    return pairs / (time.perf_counter() - started)


def show_ratio(found: dict[str, list[float]], a: str, b: str, bar: str = "") -> None:
    ratios = [x / y for x, y in zip(found[a], found[b], strict=True)]
    print(f"{a:<22} / {b:<32}{statistics.median(ratios):8.2f} ({min(ratios):.2f}-{max(ratios):.2f}){bar}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    keep_freed()  # as a run does
    torch.set_num_threads(1)  # on few cores the Gaussians of small items are far slower with more
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder, options.frames)
        trajectories = load([name], ferro=False)
        pairs = FramePairs(trajectories, TAU)
        batch = pairs.read(np.arange(PAIRS))
        rows: dict[str, Callable[[], Batches]] = {
            "memory copy": lambda: copies(batch, len(pairs) // PAIRS),
            "read": lambda: reads(pairs),
            "read, old arrays": lambda: refills(pairs),
            "read, first time": lambda: reads(FramePairs(trajectories, TAU)),
            "loader, no thread": lambda: loads(pairs, 0),
            "loader, 1 thread": lambda: loads(pairs, 1),
            "loader, 2 threads": lambda: loads(pairs, 2),
        }
        theirs = {}
        if importlib.util.find_spec("torch_geometric") is None:
            print("torch_geometric is not installed (pip install torch-geometric): its rows are left out\n")
        else:
            plain, expanded = Items(folder, gaussians=False), Items(folder, gaussians=True)
            same_edges(plain, pairs)
            theirs = {
                "geometric, distances": lambda: geometric(plain, 0),
                "geometric, distances, 1 worker": lambda: geometric(plain, 1),
                "geometric, Gaussians": lambda: geometric(expanded, 0),
                "geometric, Gaussians, 1 worker": lambda: geometric(expanded, 1),
            }
        rows |= theirs
        found: dict[str, list[float]] = {row: [] for row in rows}
        for round_ in range(-1, options.rounds):  # the first one warms the page cache
            for row in list(rows)[:: 1 if round_ % 2 else -1]:
                one = rate(rows[row]())
                if round_ >= 0:
                    found[row].append(one)

    print(f"{'':<32}{'pairs/s':>10}")
    for row, rates in found.items():
        print(f"{row:<32}{statistics.median(rates):10,.0f}")
    print("\nratios within a round")
    for row in rows:
        if row not in theirs:
            show_ratio(found, row, "memory copy")
    for row in theirs:
        show_ratio(found, f"loader, {'1' if row.endswith('worker') else 'no'} thread", row, ", wanted 20")
    ours = sum(array.nbytes for array in batch.values()) / PAIRS
    edges = 2 * ATOMS * NEIGHBOURS  # of both frames
    print(f"\nbytes per pair to the device: {ours:,.0f} in a batch of ours")
    for what, features, bar in (("Gaussians", GAUSSIANS, ", wanted 20"), ("distances", 1, "")):
        theirs_bytes = edges * (2 * 8 + 4 * features)  # two int64 and the float32s of an edge
        print(f"edges with {what}: {theirs_bytes:,}, {theirs_bytes / ours:.1f} times as many{bar}")


if __name__ == "__main__":
    main()
