"""Closed orbits of the maps n -> n/2 (n even), a*n + b (n odd), over integers of either sign.

3n+1 on positive numbers has one known cycle, and that is the conjecture. Its neighbours have several, so they are where
a cycle detector can be seen to work before it is trusted with silence.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cycle:
    """A closed orbit of the map with this multiplier and offset.

    Args:
        members: its numbers in orbit order, beginning with the one of smallest magnitude.
        start: the number whose orbit led here, not part of the comparison of two cycles' ``members``.
    """

    members: tuple[int, ...]
    start: int
    multiplier: int = 3
    offset: int = 1

    def __len__(self) -> int:
        return len(self.members)

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.members[:8])) + (", ..." if len(self) > 8 else "")
        rule = f"{self.multiplier}n{self.offset:+d}"
        return f"cycle of {len(self)} under {rule}: {shown} (reached from {self.start})"


class ClosedOrbit(ArithmeticError):
    """An orbit that was meant to end at 1 closed without it. For 3n+1 this is a counterexample; see ``cycle``."""

    def __init__(self, cycle: Cycle) -> None:
        super().__init__(str(cycle))
        self.cycle = cycle


def step(n: int, multiplier: int = 3, offset: int = 1) -> int:
    """One standard step; exact for any integer. Halving an odd result is never asked for: a and b must be odd."""
    return multiplier * n + offset if n & 1 else n >> 1


def find_cycle(n: int, multiplier: int = 3, offset: int = 1, max_steps: int = 1_000_000) -> Cycle | None:
    """The cycle that the orbit of ``n`` runs into, or None if it does not close within ``max_steps`` steps.

    Brent's algorithm (BIT 20, 1980, pp. 176-184): the orbit is compared with one remembered value, which is replaced at
    every power of two, so memory is constant and each step is one comparison. It needs at most about three times as
    many steps as the tail and the cycle have together.
    """
    anchor, value, since, reach = n, n, 0, 1
    for _ in range(max_steps):
        value = step(value, multiplier, offset)
        since += 1
        if value == anchor:
            return Cycle(_members(value, multiplier, offset), n, multiplier, offset)
        if since == reach:
            anchor, since, reach = value, 0, 2 * reach
    return None


def _members(n: int, multiplier: int, offset: int) -> tuple[int, ...]:
    members = [n]
    while (value := step(members[-1], multiplier, offset)) != n:
        members.append(value)
    first = members.index(min(members, key=abs))
    return tuple(members[first:] + members[:first])


def _known(multiplier: int, offset: int, *starts: int) -> tuple[tuple[int, ...], ...]:
    return tuple(_members(n, multiplier, offset) for n in starts)


KNOWN_CYCLES: dict[tuple[int, int], tuple[tuple[int, ...], ...]] = {
    (3, 1): _known(3, 1, 1, 0, -1, -5, -17),
    (3, -1): _known(3, -1, 1, 5, 17, 0, -1),
    (5, 1): _known(5, 1, 1, 13, 17, 0, -1),
}
"""The cycles known for each (multiplier, offset), in the form of ``Cycle.members``: a search reports only others."""
