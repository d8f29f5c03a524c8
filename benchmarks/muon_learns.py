"""What the muon task learns in some minutes on two cores, beside ``preset: legacy`` on the same data.

    python benchmarks/muon_learns.py [--steps 3000] [--showers 20000] [--folder DIR]

Trains both presets by ``examples/muon_small.yaml`` on the recommended synthetic set and compares them with the truth
that the recipe knows exactly: mean number of muons and share of empty events, per decade of primary energy, on 10,000
new showers. The distances to held-out bundles stand beside truth against other truth, and beside a shuffled control.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

NEW_SHOWERS = 10_000


def learn(folder: Path, data: Path, preset: str, steps: int) -> dict[str, Any]:
    """Train one preset; its last metrics, with ``counts``: decade -> [model / true mean N, model - true P(0)]."""
    from accel_train import Trainer
    from accel_train.config.read import parse

    config = Path(__file__).parent.parent / "examples" / "muon_small.yaml"
    task, settings = parse([
        "--config", str(config), f"--task.init_args.files={data}/*.parquet", f"--task.init_args.preset={preset}",
        f"--max_steps={steps}", f"--eval_steps={steps}", f"--output_dir={folder / preset}", "--report_to=[]",
        "--resume_from_checkpoint=never", "--check_contract=false",
    ])  # fmt: skip
    trainer = Trainer(task, settings)
    result = trainer.fit()
    last = {name: values[-1] for name, values in result.history.items() if name.endswith("_loss")}
    return {**result.metrics, **last, "counts": against_theory(trainer.models["multiplicity"])}


def against_theory(multiplicity: Any) -> dict[str, list[float]]:
    from accel_train.tasks.muon import synth, truth

    showers = synth.simulate(NEW_SHOWERS, seed=1234)
    energy, zenith, mass, depth = showers.rows["primary"].astype(float).T
    mean = truth.expected_count(energy, mass, zenith, depth)
    zero = truth.p_zero(mean)
    with torch.no_grad():
        conditions = multiplicity.normalise.encode_conditions(torch.from_numpy(showers.rows["primary"]))
        made, made_zero = (value.numpy() for value in multiplicity.moments(conditions))
    found = {}
    for decade in np.unique(np.floor(np.log10(energy))):
        rows = np.floor(np.log10(energy)) == decade
        name = f"E{decade:.0f}-{decade + 1:.0f}"
        found[name] = [made[rows].mean() / mean[rows].mean(), made_zero[rows].mean() - zero[rows].mean()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--showers", type=int, default=20_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    from accel_train.tasks.muon import synth

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "data").exists():
            synth.synth(folder / "data", seed=0, size=options.showers)
        found = {preset: learn(folder, folder / "data", preset, options.steps) for preset in ("default", "legacy")}
    print(f"\n{'':16}{'default':>12}{'legacy':>12}{'truth':>12}{'shuffled':>12}")
    for name in ("fpd", "kpd", "auc", "w1_energy", "w1_radius", "w1_sum_energy", "w1_mean_radius", "corr", "azimuth"):
        values = [found["default"][name], found["legacy"][name], found["default"][f"{name}/floor"],
                  found["default"][f"{name}/shuffled"]]  # fmt: skip
        print(f"{name:16}" + "".join(f"{value:>12.3g}" for value in values))
    print(f"{'critic loss':16}{found['default']['critic_loss']:>12.3g}{found['legacy']['critic_loss']:>12.3g}")
    print(f"{'generator loss':16}{found['default']['generator_loss']:>12.3g}{found['legacy']['generator_loss']:>12.3g}")
    for decade, (ratio, zero) in found["default"]["counts"].items():
        print(f"{decade}: mean N {ratio:.3f} of the truth, P(0) {zero:+.4f}")
    print(json.dumps({"steps": options.steps, "showers": options.showers}))


if __name__ == "__main__":
    main()
