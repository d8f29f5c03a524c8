"""What the tcn task foresees in shots whose disruptions are known, beside models that are trivial.

    python benchmarks/tcn_learns.py [--only easy hard] [--seed 0] [--train 128] [--test 200] [--folder DIR] [OPTION ...]

By the commands that a user has: synth, preprocess, train with examples/tcn_small.yaml (and what further options say,
such as --task.init_args.channel_dropout=0.5), and tcn report, whose table is printed: thresholds are chosen on
validation shots, numbers are of test shots, with 95 % intervals over shots. ``--seed`` is of data and training. The
detectors of leaks see no signal, and their AUC over shots must be that of chance, 0.5. (Over steps the place in the
file says much, since records end with the disruption; no causal network knows it.)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def command(*arguments: object, shown: bool = False) -> None:
    out = None if shown else subprocess.DEVNULL
    subprocess.run([sys.executable, "-m", "accel_train", *map(str, arguments)], check=True, stdout=out)


def learn(folder: Path, kind: str, options: argparse.Namespace, more: list[str]) -> None:
    raw, stored, run = folder / kind, folder / f"{kind}-2kHz", folder / f"{kind}-run"
    if not stored.exists():
        sizes = [f"--size={options.train}", f"--val={max(2, options.train // 2)}", f"--test={options.test}"]
        command("synth", "tcn", "--out", raw, "--seed", options.seed, f"--kind={kind}", *sizes)
        where = ["--disrupt", raw / "disrupt", "--clear", raw / "clear"]
        command("tcn", "preprocess", "--out", stored, *where, "--dt_ms=0.1", "--step=5", "--antialias")
    start = time.perf_counter()
    example = ["--config", ROOT / "examples" / "tcn_small.yaml", f"--task.init_args.data={stored}"]
    command("train", *example, f"--seed={options.seed}", f"--output_dir={run}", "--report_to=[]", *more)
    print(f"{kind}: {options.train} shots, trained in {time.perf_counter() - start:.0f} s", flush=True)
    command("tcn", "report", run, shown=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=("easy", "hard"), default=["easy", "hard"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=128, help="shots")
    parser.add_argument("--test", type=int, default=200, help="shots")
    parser.add_argument("--folder", type=Path)
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        for kind in options.only:
            learn(options.folder or Path(temporary), kind, options, more)


if __name__ == "__main__":
    main()
