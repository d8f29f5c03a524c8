"""Synthetic discharges: electron temperatures that an array of 20 x 8 channels sees, and when they disrupt.

Times are plasma times in ms; nothing glows before 0. All that is smooth in time is a sum of a few patterns over the
channels, each times a series, so that a discharge costs one thin matrix product and its noise.

Length says nothing: until the moment at which it ends, a discharge that disrupts and one that is ramped down are drawn
from the same law, and their records end alike. So whatever foresees disruptions here reads the signals; time since the
start, or the place in the file, does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

ROWS, COLUMNS = 20, 8
CHANNELS = ROWS * COLUMNS
T0_MS, DT_MS = -50.0, 0.1  # of the first sample, and between samples: a hundred times fewer than the real ones
TWARN_MS = 150.0  # before a disruption the edge cools this long; the label horizon that goes with these times

FLAT_START_MS, FLAT_LENGTH_MS = (150.0, 250.0), (500.0, 900.0)
END_SHARE = (0.55, 1.0)  # of the flattop's length, where a discharge ends
TAIL_MS = 3.0  # mean of what is recorded after that
RAMP_DOWN_MS = (80.0, 200.0)
CALM_MS = 300.0  # before a disruption without other events, so that none can be taken for its precursor

GAIN_SPREAD, OFFSET_SPREAD, NOISE = 0.25, 0.5, 0.6  # noise: over the SNR
SAWTOOTH, SAWTOOTH_MS, INVERSION, SAWTOOTH_WIDTH = 0.12, (25.0, 60.0), (0.5, 0.65), 0.15
MODE_RHO, MODE_WIDTH, MODE_HZ, LOCKED_HZ = 0.75, 0.15, (500.0, 800.0), (30.0, 80.0)
GROWTH_MS, SATURATION = (35.0, 60.0), (8.0, 14.0)  # e-folding time of a precursor; its largest over its first amplitude
BURST_MS, BURST_HZ = (60.0, 180.0), (400.0, 800.0)
EDGE_RHO, QUENCH_MS = 0.7, 0.4
RECOVERY_MS = 30.0  # in which an impostor goes away
TONE, TONE_HZ = 0.1, 2100.0  # pick-up above half of the 2 kHz that every fifth sample has, where it looks like 100 Hz
STEP = 2.0**-10  # of the digitiser, which has 14 bits

Random = Callable[[str], np.random.Generator]
"""A generator by its purpose, so that how much is drawn for one does not change another."""

Trap = Literal["no_flattop", "late_disruption", "short"]


@dataclass(frozen=True)
class Recipe:
    """What discharges there are.

    Args:
        bursts: mean number of harmless bursts of the mode in a flattop. They do not lock.
        impostors: mean number of harmless events in a flattop that are to each channel what a precursor and its cooling
            are to the channel at the other end of the row, and that go away. Only their place tells.
        onset_ms: the precursor begins between so many ms before the disruption.
        amplitude: with which it begins, over the temperature in the middle.
        cooling: by which part the edge has cooled in the end, at least and at most.
        strength: lowest and highest factor of both, drawn anew for each precursor and impostor, small ones as often as
            large ones (its logarithm is uniform). The weakest are lost in noise and sawteeth, so that no model sees
            every disruption.
        snr: lowest and highest ratio of signal to noise.
        tone: is there a pick-up that plain slicing folds into the band?
        dead_channels, frozen_channels: so many, others in each discharge, see nothing, or stick from some moment on.
        digitised: are values multiples of ``STEP``, as 14 bits hold them?
    """

    bursts: float = 1.5
    impostors: float = 1.5
    onset_ms: tuple[float, float] = (180.0, 260.0)
    amplitude: float = 0.02
    cooling: tuple[float, float] = (0.05, 0.35)
    strength: tuple[float, float] = (0.2, 1.0)
    snr: tuple[float, float] = (3.0, 20.0)
    tone: bool = False
    dead_channels: int = 0
    frozen_channels: int = 0
    digitised: bool = False


RECIPES = {
    "easy": Recipe(
        bursts=0.0,
        impostors=0.0,
        onset_ms=(150.0, 165.0),
        amplitude=0.06,
        cooling=(0.35, 0.35),
        strength=(1.0, 1.0),
        snr=(8.0, 20.0),
    ),
    "hard": Recipe(),
}


@dataclass(frozen=True)
class Discharge:
    """What is true of a discharge; times in ms.

    Args:
        flat_start_ms: None for one without flattop, whose current rises to its end.
        flat_stop_ms: the disruption, or the beginning of the ramp-down.
        end_ms: the disruption, or the end of the ramp-down.
        last_ms: of the record.
        onset_ms: of the precursor; None if there is no disruption.
        dead, frozen: numbers of such channels (row * 8 + column).
        frozen_ms: since when.
    """

    disruptive: bool
    flat_start_ms: float | None
    flat_stop_ms: float
    end_ms: float
    last_ms: float
    onset_ms: float | None
    snr: float
    dead: list[int]
    frozen: list[int]
    frozen_ms: float

    @property
    def samples(self) -> int:
        """From ``T0_MS`` to ``last_ms``."""
        return int((self.last_ms - T0_MS) / DT_MS) + 1


def draw(random: Random, disruptive: bool, recipe: Recipe) -> Discharge:
    times, kinds = random("times"), random("kind")
    start, length, share = times.uniform(*FLAT_START_MS), times.uniform(*FLAT_LENGTH_MS), times.uniform(*END_SHARE)
    end = round(start + share * length, 3)  # as files write it, so that labels and signals mean the same moment
    last = round(end + times.exponential(TAIL_MS), 3)
    stop = end if disruptive else round(end - kinds.uniform(*RAMP_DOWN_MS), 3)
    channels = random("broken")
    broken = channels.permutation(CHANNELS)[: recipe.dead_channels + recipe.frozen_channels].tolist()
    return Discharge(
        disruptive,
        flat_start_ms=round(start, 3),
        flat_stop_ms=stop,
        end_ms=end,
        last_ms=last,
        onset_ms=round(end - kinds.uniform(*recipe.onset_ms), 3) if disruptive else None,
        snr=round(kinds.uniform(*recipe.snr), 2),
        dead=sorted(broken[: recipe.dead_channels]),
        frozen=sorted(broken[recipe.dead_channels :]),
        frozen_ms=round(channels.uniform(start, end), 3),
    )


def trapped(discharge: Discharge, trap: Trap, random: Random) -> Discharge:
    """The same with a trap: no flattop, a disruption 2 to 20 ms after the record, or (if clear) a record of 350 ms."""
    if trap == "no_flattop":
        return replace(discharge, flat_start_ms=None)
    if trap == "late_disruption":
        return replace(discharge, last_ms=round(discharge.end_ms - random("late").uniform(2, 20), 3))
    return replace(discharge, flat_start_ms=100.0, flat_stop_ms=200.0, end_ms=300.0, last_ms=300.0)


# -- signals ---------------------------------------------------------------------------------------------------------

_Z, _R = np.linspace(-1, 1, ROWS)[:, None], np.linspace(0, 1, COLUMNS)
RHO = np.sqrt((0.35 + 0.65 * _R) ** 2 + 0.25 * _Z**2).ravel()
"""float64 [CHANNELS]: distance of each channel from the middle of the plasma; the edge is near 1."""

_PROFILE = np.maximum(0.05, 1 - RHO**2 / 1.4)
_TURN = np.pi * np.broadcast_to(_Z, (ROWS, COLUMNS)).ravel()  # by which a mode with m = 2 lags along the array

Term = tuple[np.ndarray, np.ndarray]
"""A pattern [CHANNELS] and its series [samples]."""


def signals(discharge: Discharge, random: Random, recipe: Recipe) -> np.ndarray:
    """What the channels record: float32 [CHANNELS, samples].

    Until the plasma begins it is offset and noise. Every channel has a gain, an offset and white noise of its own.
    """
    t = T0_MS + DT_MS * np.arange(discharge.samples)
    plasma, channels = random("plasma"), random("channels")
    gain, offset = np.exp(channels.normal(0, GAIN_SPREAD, CHANNELS)), channels.normal(0, OFFSET_SPREAD, CHANNELS)
    current = _current(t, discharge)
    terms = [(_PROFILE, current), _sawteeth(t, current, plasma), *_bursts(t, discharge, recipe, random("bursts"))]
    terms += _impostors(t, current, discharge, recipe, random("impostors"))
    if discharge.disruptive:
        onset, end = discharge.onset_ms or 0.0, discharge.end_ms
        terms += _precursor(t, current, onset, end, QUENCH_MS, recipe, random("precursor"))
    if recipe.tone:
        terms.append((np.ones(CHANNELS), TONE * np.sin(2e-3 * np.pi * TONE_HZ * t + plasma.uniform(0, 2 * np.pi))))
    patterns = np.stack([gain * pattern for pattern, _ in terms] + [offset], 1).astype(np.float32)
    series = np.stack([series for _, series in terms] + [np.ones_like(t)]).astype(np.float32)
    x = random("noise").standard_normal((CHANNELS, len(t)), dtype=np.float32)
    x *= (NOISE / discharge.snr * gain).astype(np.float32)[:, None]
    x += patterns @ series
    x[discharge.dead] = offset[discharge.dead, None]
    stuck = int((discharge.frozen_ms - T0_MS) / DT_MS)
    x[discharge.frozen, stuck:] = x[discharge.frozen, stuck : stuck + 1]
    return np.clip(np.round(x / STEP), -(2**13), 2**13 - 1) * np.float32(STEP) if recipe.digitised else x


def _current(t: np.ndarray, discharge: Discharge) -> np.ndarray:
    """0 to 1: rises to the flattop; then it falls, or ends at once."""
    rises = np.clip(t / (discharge.flat_start_ms or discharge.end_ms), 0, 1)
    if discharge.disruptive:
        return rises * _decay(t, discharge.end_ms, QUENCH_MS)
    return rises * np.clip((discharge.end_ms - t) / (discharge.end_ms - discharge.flat_stop_ms), 0, 1)


def _decay(t: np.ndarray, since: float, time: float) -> np.ndarray:
    return np.exp(-np.maximum(t - since, 0) / time)


def _odd(middle: float, width: float) -> np.ndarray:
    """1 one width inside ``middle``, -1 one width outside, 0 there and far away."""
    x = (middle - RHO) / width
    return x * np.exp((1 - x**2) / 2)


def _sawteeth(t: np.ndarray, current: np.ndarray, random: np.random.Generator) -> Term:
    """The core heats up and crashes, and heat passes the inversion radius."""
    turns = t / random.uniform(*SAWTOOTH_MS) + random.uniform()
    return SAWTOOTH * _odd(random.uniform(*INVERSION), SAWTOOTH_WIDTH), current * (turns % 1 - 0.5)


def _mode(amplitude: np.ndarray, hz: np.ndarray | float, random: np.random.Generator) -> list[Term]:
    """A rotating island: cos(phase - turn), as two terms. amplitude: [samples]."""
    phase = 2e-3 * np.pi * DT_MS * np.cumsum(np.broadcast_to(hz, amplitude.shape)) + random.uniform(0, 2 * np.pi)
    pattern = _odd(MODE_RHO, MODE_WIDTH)
    return [
        (pattern * np.cos(_TURN), amplitude * np.cos(phase)),
        (pattern * np.sin(_TURN), amplitude * np.sin(phase)),
    ]


def _bursts(t: np.ndarray, discharge: Discharge, recipe: Recipe, random: np.random.Generator) -> list[Term]:
    terms: list[Term] = []
    for _ in range(random.poisson(recipe.bursts)):
        length, hz = random.uniform(*BURST_MS), random.uniform(*BURST_HZ)
        peak = recipe.amplitude * random.uniform(*SATURATION)
        begin = _begin(discharge, length, random)
        if begin is not None:
            terms += _mode(peak * np.sin(np.pi * np.clip((t - begin) / length, 0, 1)) ** 2, hz, random)
    return terms


def _begin(discharge: Discharge, length: float, random: np.random.Generator) -> float | None:
    """When an event begins: drawn alike in all flattops, whatever comes. None if it would not be over in time."""
    begin = (discharge.flat_start_ms or 0.0) + random.uniform(0, FLAT_LENGTH_MS[1])
    over = discharge.end_ms - CALM_MS if discharge.disruptive else discharge.flat_stop_ms
    return begin if begin + length < over else None


def _precursor(
    t: np.ndarray, current: np.ndarray, onset: float, end: float, gone: float, recipe: Recipe,
    random: np.random.Generator,
) -> list[Term]:  # fmt: skip
    """A mode that grows exponentially, saturates, and slows down until it locks to the wall, while the edge cools.

    Args:
        onset, end, gone: in ms; from ``end`` on it falls by a factor e in each ``gone``.
    """
    growth, most, strength = (
        random.uniform(*GROWTH_MS),
        random.uniform(*SATURATION),
        _log_uniform(recipe.strength, random),
    )
    grown = np.exp(np.clip((t - onset) / growth, 0, 20))
    amplitude = strength * recipe.amplitude * grown / (1 + grown / most) * (t >= onset)
    first, locked = random.uniform(*MODE_HZ), random.uniform(*LOCKED_HZ)
    hz = first * (locked / first) ** np.clip((t - onset) / (end - onset), 0, 1)
    cooled = strength * random.uniform(*recipe.cooling) * np.clip((t - end + TWARN_MS) / TWARN_MS, 0, 1)
    decay = _decay(t, end, gone)
    return [*_mode(amplitude * decay, hz, random), (_PROFILE * (RHO > EDGE_RHO), -current * cooled * decay)]


def _log_uniform(limits: tuple[float, float], random: np.random.Generator) -> float:
    return float(np.exp(random.uniform(*np.log(limits))))


def _impostors(
    t: np.ndarray, current: np.ndarray, discharge: Discharge, recipe: Recipe, random: np.random.Generator
) -> list[Term]:
    terms: list[Term] = []
    for _ in range(random.poisson(recipe.impostors)):
        length = random.uniform(*recipe.onset_ms)
        begin = _begin(discharge, length + 3 * RECOVERY_MS, random)
        if begin is not None:
            found = _precursor(t, current, begin, begin + length, RECOVERY_MS, recipe, random)
            terms += [(_PROFILE * _mirrored(pattern / _PROFILE), series) for pattern, series in found]
    return terms


def _mirrored(pattern: np.ndarray) -> np.ndarray:
    return pattern.reshape(ROWS, COLUMNS)[:, ::-1].ravel()
