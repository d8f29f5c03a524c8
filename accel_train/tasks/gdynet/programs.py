"""A lobe as a program of its own, which runs without this package: torch.export, and TorchScript while torch has it."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from accel_train.errors import UserError

TOLERANCE = 1e-5


def write_programs(models: dict[str, nn.Module], ferro: bool, folder: Path) -> None:
    """``NAME.pt2`` and ``NAME.torchscript.pt`` of every lobe, for any number of frames, atoms, targets and neighbours.

    Their arguments are those of ``Lobe.forward``. Each is loaded again and compared with the lobe on frames of another
    shape than it was made with.

    Raises:
        UserError: a program's probabilities differ from the lobe's by more than ``TOLERANCE``.
    """
    for name, lobe in models.items():
        lobe = lobe.cpu().eval()
        made_with, other = _example(2, 12, 5, 4, ferro), _example(3, 17, 7, 6, ferro)
        sizes = [torch.export.Dim(size) for size in ("frames", "atoms", "targets", "neighbours")]
        B, N, n, M = sizes
        dynamic = [{0: N}, {0: n}, {0: B, 1: N, 2: M}, {0: B, 1: N, 2: M}, {0: B, 1: N}]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript says of itself that it is old
            program = torch.export.export(lobe, made_with, dynamic_shapes=dynamic[: len(made_with)])
            torch.export.save(program, folder / f"{name}.pt2")
            traced = torch.jit.trace(lobe, made_with)
            traced.save(str(folder / f"{name}.torchscript.pt"))  # pyright: ignore[reportAttributeAccessIssue]
            loaded = {
                f"{name}.pt2": torch.export.load(folder / f"{name}.pt2").module(),
                f"{name}.torchscript.pt": torch.jit.load(folder / f"{name}.torchscript.pt"),
            }
            expected = lobe(*other)
            for file, copy in loaded.items():
                worst = (copy(*other) - expected).abs().max().item()
                if not worst <= TOLERANCE:
                    raise UserError(f"export: {file} differs from the model by {worst:.2g}")


def _example(frames: int, atoms: int, targets: int, neighbours: int, ferro: bool) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(frames)
    shape = (frames, atoms, neighbours)
    example = [
        torch.randint(1, 90, (atoms,), generator=draw),
        torch.arange(targets),
        torch.randint(-1, atoms, shape, generator=draw, dtype=torch.int32),
        torch.rand(shape, generator=draw) * 6,
    ]
    if ferro:
        example.append(torch.randn((frames, atoms, 3), generator=draw))
    return tuple(example)
