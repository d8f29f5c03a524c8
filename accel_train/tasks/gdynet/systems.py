"""Systems whose slow processes are known: what they consist of, what is true of them, and how they move.

A system is a number of equal clusters of atoms, each with one target. Neighbours never change (and are in the order of
their index), and nothing passes from one cluster to another, so a deep network sees no further than one convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from accel_train.arguments import Range
from accel_train.tasks.gdynet import truth

RADIUS = 6.0  # Angstrom: a cluster fits into it, and no two clusters do
SPACING = 12.0  # Angstrom between the middles of clusters
CAGE = 2.0  # Angstrom from the middle of a cluster to the atoms around it
TARGET, ATOM, MARK = 22, 8, 56  # atomic numbers: Ti and O, and Ba where the symmetry of a cage is broken
PRINZ_DISTANCE = 3.0  # Angstrom between the atoms of a pair where x is 0
ELLIPSOID_DISTANCE, ELLIPSOID_AXES, ELLIPSOID_MEAN = 3.0, (1.0, 0.1), 0.4  # Angstrom; 4 standard deviations apart
MARKOV_DISTANCES = (2.0, 0.4)  # Angstrom between the atoms of a pair: of the first state, and more for each further one

Random = Callable[[str], np.random.Generator]
"""A generator by its purpose, so that how much is drawn for one does not change another."""

Frames = dict[str, np.ndarray]
"""Arrays by the name of their file; axis 0 is the frame."""


class Atoms(NamedTuple):
    """What is the same in all frames: atomic numbers [N], indices of targets [n] and of neighbours [N, M]."""

    types: np.ndarray
    targets: np.ndarray
    neighbours: np.ndarray


# -- systems: each says what it consists of, what is true of it, and gives its frames in blocks -----------------------


@dataclass(frozen=True)
class Ferro:
    """Ferroelectric cells: a target in an octahedral cage of six atoms, displaced along z by -delta, 0 or +delta.

    The sign of the displacement is the slowest process. Distances do not show it, because the mirror image of a cage
    has the same ones; the direction (target minus the mean of its cage) does.

    Args:
        clusters: cells, which know nothing of each other.
        delta: displacement in Angstrom.
        p: probability per frame of going from the middle up, and of going down.
        q: probability per frame of going back to the middle.
        sigma: standard deviation in Angstrom of the noise of every coordinate, an Ornstein-Uhlenbeck process.
        correlation: correlation time of the noise in frames.
        marked: put a heavier atom above the target, so that distances show the sign too.
    """

    clusters: int = 8
    delta: float = 0.30
    p: float = 0.01
    q: float = 0.01
    sigma: float = 0.05
    correlation: float = 2.0
    marked: bool = False

    size, model_type, state_len = 4000, "gdynet_ferro", 3

    def __post_init__(self) -> None:
        Range(1).check("clusters", self.clusters)
        Range(0, 1).check("delta", self.delta)
        Range(1e-6, 0.5).check("p", self.p)
        Range(1e-6, 1).check("q", self.q)
        Range(0, 0.2).check("sigma", self.sigma)
        Range(0.01).check("correlation", self.correlation)

    def chain(self) -> np.ndarray:
        """Transition matrix per frame of the states down, middle, up."""
        p, q = self.p, self.q
        return np.array([[1 - q, q, 0], [p, 1 - 2 * p, p], [0, q, 1 - q]])

    def truth(self) -> dict[str, Any]:
        """The truth of the processes that directions show, and under ``vanilla`` of those that distances show."""
        p, q = self.p, self.q
        lumped = [[1 - q, q], [2 * p, 1 - 2 * p]]  # up and down as one state, still a Markov chain
        return {**truth.known(self.chain()), "vanilla": truth.known(self.chain() if self.marked else lumped)}

    def atoms(self) -> Atoms:
        types = np.array([TARGET, ATOM, ATOM, ATOM, ATOM, MARK if self.marked else ATOM, ATOM])
        first = 7 * np.arange(self.clusters)
        return Atoms(np.tile(types, self.clusters), first, (first[:, None, None] + _others(7)).reshape(-1, 6))

    def frames(self, random: Random, lengths: Sequence[int]) -> Iterator[Frames]:
        rest = np.concatenate([np.zeros((1, 3)), CAGE * np.repeat(np.eye(3), 2, 0) * np.tile([[1], [-1]], (3, 1))])
        noise = _noise(random("noise"), (self.clusters, 7, 3), self.sigma, self.correlation, lengths)
        states = _states(random("states"), self.chain(), self.clusters, lengths)
        for state, moved in zip(states, noise, strict=True):
            local = rest + moved  # [frames, clusters, 7, 3]
            local[:, :, 0, 2] += self.delta * (state - 1)
            directions = np.zeros_like(local)
            directions[:, :, 0] = local[:, :, 0] - local[:, :, 1:].mean(2)
            yield {
                "nbr_dists": np.linalg.norm(local[:, :, _others(7)] - local[:, :, :, None], axis=-1),
                "atom_directions": directions,
                "traj_coords": local + _grid(self.clusters)[:, None],
                "true_states": state,
            }


@dataclass(frozen=True)
class _Pairs:
    """Walkers, each a target with one other atom, the only neighbour of it.

    Args:
        walkers: pairs, which know nothing of each other.
    """

    walkers: int = 8

    size, model_type = 4000, "gdynet_vanilla"

    def __post_init__(self) -> None:
        Range(1).check("walkers", self.walkers)

    def atoms(self) -> Atoms:
        first = 2 * np.arange(self.walkers)
        return Atoms(np.tile([TARGET, ATOM], self.walkers), first, (first[:, None, None] + _others(2)).reshape(-1, 1))


@dataclass(frozen=True)
class Prinz(_Pairs):
    """Overdamped Langevin dynamics in ``truth.prinz``: the distance of a pair is 3 Angstrom + x, the state the well.

    The wells are not all there is to see of the slow processes: their oracle scores less than the truth says.
    """

    walkers: int = 100

    size, state_len = 1000, 4

    def truth(self) -> dict[str, Any]:
        return truth.known_prinz()

    def frames(self, random: Random, lengths: Sequence[int]) -> Iterator[Frames]:
        for x in _langevin(random, self.walkers, lengths):
            yield {
                "nbr_dists": PRINZ_DISTANCE + np.repeat(x, 2, 1),
                "true_states": np.digitize(x, truth.PRINZ_TOPS),
            }


@dataclass(frozen=True)
class Ellipsoids(_Pairs):
    """Two states, each seen as an elongated Gaussian in the plane: the direction of the target, with z = 0.

    The ellipsoids lie side by side, their long axes along x = y, so that neither coordinate alone tells them apart.
    Distances never change.

    Args:
        walkers: pairs, which know nothing of each other.
        laziness: probability per frame of staying in a state.
    """

    laziness: float = 0.97

    model_type, state_len = "gdynet_ferro", 2

    def __post_init__(self) -> None:
        super().__post_init__()
        Range(0.5, 1 - 1e-6).check("laziness", self.laziness)

    def chain(self) -> np.ndarray:
        stay, go = self.laziness, 1 - self.laziness
        return np.array([[stay, go], [go, stay]])

    def truth(self) -> dict[str, Any]:
        return truth.known(self.chain())

    def frames(self, random: Random, lengths: Sequence[int]) -> Iterator[Frames]:
        axes = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2)
        spread = random("noise")
        for state in _states(random("states"), self.chain(), self.walkers, lengths):
            along = ELLIPSOID_AXES * spread.standard_normal((*state.shape, 2))
            along[..., 1] += ELLIPSOID_MEAN * (2 * state - 1)
            directions = np.zeros((*state.shape, 2, 3))
            directions[:, :, 0, :2] = along @ axes
            distances = np.full((*state.shape, 2), ELLIPSOID_DISTANCE)
            yield {"nbr_dists": distances, "atom_directions": directions, "true_states": state}


@dataclass(frozen=True)
class Markov(_Pairs):
    """A random reversible chain in full view: each state is one distance of the pair, 2.0, 2.4, ... Angstrom.

    Args:
        walkers: pairs, which know nothing of each other.
        states: of the chain.
        laziness: probability per frame of not even trying to leave a state.
        chain_seed: which chain.
    """

    states: int = 4
    laziness: float = 0.9
    chain_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        Range(2, 10).check("states", self.states)
        Range(0, 1 - 1e-6).check("laziness", self.laziness)
        Range(0).check("chain_seed", self.chain_seed)

    @property
    def state_len(self) -> int:
        return self.states

    def chain(self) -> np.ndarray:
        return truth.reversible(self.states, self.laziness, self.chain_seed)

    def truth(self) -> dict[str, Any]:
        return {**truth.known(self.chain()), "transition_matrix": self.chain().tolist()}

    def frames(self, random: Random, lengths: Sequence[int]) -> Iterator[Frames]:
        first, step = MARKOV_DISTANCES
        for state in _states(random("states"), self.chain(), self.walkers, lengths):
            yield {"nbr_dists": first + step * np.repeat(state, 2, 1), "true_states": state}


SYSTEMS = {"ferro": Ferro, "prinz": Prinz, "ellipsoids": Ellipsoids, "markov": Markov}
System = Ferro | Prinz | Ellipsoids | Markov


# -- motion ----------------------------------------------------------------------------------------------------------


def _states(
    generator: np.random.Generator, chain: np.ndarray, walkers: int, lengths: Sequence[int]
) -> Iterator[np.ndarray]:
    """Independent stationary chains, int64 [frames, walkers] in blocks of these lengths."""
    state = (generator.random((walkers, 1)) >= np.cumsum(truth.stationary(chain))[:-1]).sum(1)
    below = np.cumsum(chain, 1)[:, :-1]  # the last state takes what rounding leaves
    for length in lengths:
        block = np.empty((length, walkers), np.int64)
        for row, u in zip(block, generator.random((length, walkers, 1)), strict=True):
            row[:] = state
            state = (u >= below[state]).sum(1)
        yield block


def _noise(
    generator: np.random.Generator, shape: tuple[int, ...], sigma: float, correlation: float, lengths: Sequence[int]
) -> Iterator[np.ndarray]:
    """Stationary Ornstein-Uhlenbeck processes at whole frames, float64 [frames, *shape] in blocks."""
    keep = np.exp(-1 / correlation)
    fresh = np.sqrt(1 - keep**2)
    now = generator.standard_normal(shape)
    for length in lengths:
        block = generator.standard_normal((length, *shape))
        for row in block:
            row[:], now = now, keep * now + fresh * row
        yield sigma * block


def _langevin(random: Random, walkers: int, lengths: Sequence[int]) -> Iterator[np.ndarray]:
    """Positions float64 [frames, walkers] in ``truth.prinz``, from its stationary distribution on, in blocks.

    The force is looked up at the nearest of 2^16 points, 5e-5 from each other, which is many times faster.
    """
    low, high = truth.PRINZ_RANGE
    points = np.linspace(low, high, 2**16)
    kick = truth.PRINZ_STEP * truth.prinz_force(points)
    scale = (len(points) - 1) / (high - low)
    start, generator = random("start"), random("noise")
    known = truth.diffusion(truth.prinz, low, high)
    x = start.choice(known.x, walkers, p=known.weights)
    x += (start.random(walkers) - 0.5) * (known.x[1] - known.x[0])
    for length in lengths:
        block = np.empty((length, walkers))
        for row in block:
            row[:] = x
            noise = generator.standard_normal((truth.PRINZ_STEPS, walkers))
            noise *= np.sqrt(2 * truth.PRINZ_STEP)
            for thrust in noise:
                nearest = (x * scale + (0.5 - low * scale)).astype(np.intp)
                x += kick.take(nearest, mode="clip")
                x += thrust
        yield block


def _others(number: int) -> np.ndarray:
    """[number, number - 1]: all but oneself."""
    return np.array([[j for j in range(number) if j != i] for i in range(number)])


def _grid(clusters: int) -> np.ndarray:
    """Middles [clusters, 3] of the cells of a cubic grid, in Angstrom."""
    side = int(np.ceil(round(clusters ** (1 / 3), 9)))
    return SPACING * (np.stack(np.unravel_index(np.arange(clusters), (side,) * 3), 1) + 0.5)
