"""What the gdynet task finds in data whose slow processes are known.

    python benchmarks/gdynet_learns.py [--folder DIR] [--only ferro vanilla sharpening prinz ellipsoids]

ferro: caged atoms, whose two processes their directions show. vanilla: the same by distances alone, which do not tell
up from down, so that only one process can be seen. sharpening: what the middle phase does to the states. prinz and
ellipsoids: reference systems of the literature. Every row is by the commands that a user gives, about data that the
model has not seen.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parent.parent / "examples" / "gdynet_small.yaml"


def command(*arguments: Any) -> None:
    subprocess.run([sys.executable, "-m", "accel_train", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def learn(folder: Path, system: str, name: str, lag: int = 10, **task_args: Any) -> dict[str, Any]:
    """Train the small example on a system, evaluate its best model on the test set, analyse at ``lag`` frames."""
    data, run = folder / system, folder / name
    if not data.exists():
        command("synth", "gdynet", "--out", data, f"--system={system}")
    given = {f"{split}_fnames": [str(data / split)] for split in ("train", "val", "test")} | task_args
    options = [f"--task.init_args.{key}={json.dumps(value)}" for key, value in given.items()]
    command("train", "--config", EXAMPLE, f"--output_dir={run}", "--report_to=[]", *options)
    command("evaluate", run, "--split=test")
    states = data / "test" / "true_states.npy"
    command("gdynet", "analyze", run, f"--lag={lag}", *(["--states", states] if states.exists() else []))
    found = json.loads((run / "evaluation" / "analysis" / "analysis.json").read_text())
    truth = json.loads((data / "metadata.json").read_text())["truth"]
    return {"found": found, "truth": truth}


def shown(times: list[float | None]) -> str:
    return ", ".join("none" if t is None else f"{t:.1f}" for t in times)


def row(name: str, found: dict[str, Any], truth: dict[str, Any]) -> str:
    times, true = found["koopman"]["timescales_frames"], truth["timescales_frames"]
    ceiling = sum(math.exp(-2 * found["tau_frames"] / t) for t in true)
    states = found.get("agreement", {})
    return "  ".join([
        f"{name:24}",
        f"VAMP-2 {found['vamp']['vamp2']:.3f} of {ceiling:.3f}",
        f"timescales {shown(times)} of {shown(true)}",
        f"largest probability {found['predictions']['mean_max_probability']:.3f}",
        f"CK {found['chapman_kolmogorov']['max_difference']:.3f}",
        *(f"{key} {value:.3g}" for key, value in states.items() if not isinstance(value, list)),
    ])  # fmt: skip


def ferro(folder: Path) -> dict[str, Any]:
    return {"ferro": learn(folder, "ferro", "ferro-run")}


def vanilla(folder: Path) -> dict[str, Any]:
    """The truth beside it is that of distances alone."""
    found = {}
    for states in (2, 3):
        name = f"vanilla, {states} states"
        found[name] = learn(folder, "ferro", name, model_type="gdynet_vanilla", state_len=states)
        found[name]["truth"] = found[name]["truth"]["vanilla"]
    return found


def sharpening(folder: Path) -> dict[str, Any]:
    schedules = {"none": ["vamp2"]} | {loss: ["vamp2", loss, "vamp2"] for loss in ("vamp1", "vamp1_true", "vampe")}
    return {f"middle phase {name}": learn(folder, "ferro", name, loss_schedule=s) for name, s in schedules.items()}


def prinz(folder: Path) -> dict[str, Any]:
    return {"prinz": learn(folder, "prinz", "prinz-run", 5, model_type="gdynet_vanilla", state_len=4, tau=5)}


def ellipsoids(folder: Path) -> dict[str, Any]:
    return {"ellipsoids": learn(folder, "ellipsoids", "ellipsoids-run", 1, state_len=2, tau=1)}


def main() -> None:
    experiments = {each.__name__: each for each in (ferro, vanilla, sharpening, prinz, ellipsoids)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=experiments, default=list(experiments))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for name in options.only:
            for title, each in experiments[name](folder).items():
                print(row(title, each["found"], each["truth"]), flush=True)


if __name__ == "__main__":
    main()
