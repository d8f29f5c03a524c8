"""What the network sees, in whole numbers: dilations and receptive field. Apart from the network, so that cutting
windows or reading a config needs no torch."""

from __future__ import annotations

from typing import Literal, get_args

from accel_train.errors import UserError

Norm = Literal["weight", "channel", "none"]
NORMS: tuple[str, ...] = get_args(Norm)
"""Those that never look beyond their own step: of the weights, over the channels of one step, none."""


def receptive_field(kernel_size: int, dilations: list[int]) -> int:
    """Steps up to and including its own that an output sees, where every block has two convolutions of its dilation."""
    return 1 + 2 * (kernel_size - 1) * sum(dilations)


def dilations(levels: int, kernel_size: int, base: int | None, target: int) -> list[int]:
    """One dilation per block: 1, base, base^2, ..., and a last one that brings the receptive field to ``target`` or
    less than 2 (kernel_size - 1) above. What comes before the last may see more already: then the last is 1.

    Args:
        levels: blocks, at least 1.
        kernel_size: taps of each convolution, at least 2.
        base: None for ``fitting_base``.
        target: steps.

    Raises:
        UserError: some steps within the receptive field would not be seen.
    """
    if levels < 1 or kernel_size < 2 or target < 1 or (base is not None and base < 1):
        raise UserError(
            f"tcn: {levels} levels, kernel_size {kernel_size}, dilation_base {base} and receptive field {target} make "
            "no network; they are at least 1, 2, 1 and 1"
        )
    base = fitting_base(levels, kernel_size, target) if base is None else base
    first = [base**i for i in range(levels - 1)]
    missing = target - receptive_field(kernel_size, first)
    found = [*first, max(1, -(-missing // (2 * (kernel_size - 1))))]
    check_without_gaps(kernel_size, found)
    return found


def fitting_base(levels: int, kernel_size: int, target: int) -> int:
    """The smallest base whose powers 0 to levels - 1 reach ``target``. It gives the field's schedules, 10 for 30,000
    steps and 4 for 1,500, and so a decimated record sees as many milliseconds with the same kernel."""
    base = 1
    while levels > 1 and receptive_field(kernel_size, [base**i for i in range(levels)]) < target:
        base += 1
    return base


def check_without_gaps(kernel_size: int, dilations: list[int]) -> None:
    """Raise UserError unless every step within the receptive field is seen.

    What is seen are all sums of one multiple per dilation, from 0 to 2 (kernel_size - 1). Taken by size, a dilation
    leaves no gap if and only if it is at most what the smaller ones see.
    """
    smaller: list[int] = []
    for dilation in sorted(dilations):
        seen = receptive_field(kernel_size, smaller)
        if dilation > seen:
            most = (2 * kernel_size - 1) ** len(dilations)
            raise UserError(
                f"tcn: dilations {dilations} with kernel_size {kernel_size} leave gaps: the blocks before dilation "
                f"{dilation} see {seen} steps only. Choose more levels, a larger kernel or another dilation_base; "
                f"{len(dilations)} levels of this kernel see at most {most} steps without gaps"
            )
        smaller.append(dilation)
