"""Text that is compressed, and the times that a LAMMPS dump gives."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scipy")
pytest.importorskip("ase")

from support.trajectories import DUMP, XYZ, F, check, dump_frame, source, wrong

from accel_train.tasks.gdynet.commands import COMMANDS

main = COMMANDS["preprocess"].run


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
def test_compressed_text(tmp_path: Path, module: Any) -> None:
    """As if it were not; what is not whole is refused, and so is a frame that is cut within what is whole."""
    for name, content in (("t.xyz", XYZ), ("t.dump", DUMP)):
        check(source(tmp_path, name, module.compress(content)))
        cut = content[: content.rstrip().rindex(b"\n") + 1]
        assert "frame 3 is cut short: 5 of its 6 atoms" in wrong(tmp_path, name, module.compress(cut))
        bad = re.sub(rb"\n(\S+ )(\S+ )?0\.", rb"\n\1\g<2>zero.", content, count=1)
        assert re.search(rf"{name}: frame 0, line \d+: 'zero", wrong(tmp_path, name, module.compress(bad)))
        packed = module.compress(content)
        for end in (len(packed) - 1, len(packed) // 2, 20):
            assert f"{name} cannot be unpacked" in wrong(tmp_path, name, packed[:end])
    binary = module.compress(b"\0" * 99)
    assert "compressed, and no LAMMPS text dump or extended XYZ" in wrong(tmp_path, "t.xtc", binary)


def test_work_on_compressed_text_goes_on(tmp_path: Path) -> None:
    """Several processes read what one unpacked; nothing of it is left in the folder that is made."""
    (tmp_path / "t.xyz.gz").write_bytes(gzip.compress(XYZ))
    more = ["--targets", "Ti", "--n_nbrs", "4", "--radius", "4", "--workers", "2"]
    assert main([str(tmp_path / "t.xyz.gz"), "--out", str(tmp_path / "o"), *more]) == 0
    made = {path.name for path in (tmp_path / "o").iterdir()}
    assert made == {"atom_types.npy", "target_index.npy", "nbr_lists.npy", "nbr_dists.npy", "meta.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "t.xyz.gz"]


def test_times_of_a_dump(tmp_path: Path) -> None:
    """TIME counts in the units that UNITS names: femtoseconds in real, picoseconds in metal."""
    for units, dt in (("real", 25e-6), ("metal", 25e-3), ("lj", None)):
        frames = [dump_frame(i, f"ITEM: UNITS\n{units}\n" * (i == 0) + f"ITEM: TIME\n{i * 25}\n") for i in range(F)]
        found = source(tmp_path, "t.dump", b"".join(frames))
        check(found)
        assert found.dt == (dt and pytest.approx(dt, rel=1e-6))
    assert source(tmp_path, "t.dump", DUMP).dt is None
    odd = [dump_frame(i, "ITEM: UNITS\nreal\nITEM: TIME\nlate\n") for i in range(F)]
    assert source(tmp_path, "t.dump", b"".join(odd)).dt is None
