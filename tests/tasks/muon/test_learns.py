"""The muon task learns what the recipe of its data knows exactly. Some minutes on two cores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from muon_learns import learn
from accel_train.tasks.muon import synth
folder = Path(sys.argv[2])
synth.synth(folder / "data", seed=0)
print("RESULT", json.dumps(learn(folder, folder / "data", "default", 2500)))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_counts_and_kinematics(tmp_path):
    benchmarks = Path(__file__).parents[3] / "benchmarks"
    command = [sys.executable, "-c", SCRIPT, str(benchmarks), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.split("RESULT ")[1])
    for decade, (ratio, zero) in found["counts"].items():
        assert ratio == pytest.approx(1, abs=0.10), f"mean N at {decade}"
        assert zero == pytest.approx(0, abs=0.03), f"P(0) at {decade}"
    assert found["w1_energy"] < 0.15 and found["w1_radius"] < 3.0
    assert found["fpd"] < 0.5 < found["fpd/shuffled"]
    assert found["auc"] < 0.75 < found["auc/shuffled"]
    assert found["azimuth"] < 2 * found["azimuth/floor"]
