"""Everything that only a GPU can show, in one command of at most ``--minutes``.

    python benchmarks/gpu.py [--minutes 8] [--steps 200] [--only collatz_small muon] [--out gpu.json]

Runs the tests that need a GPU, then every preset of ``examples/`` on synthetic data: in fp32, bf16 and fp16, compiled
and not. For each row: items a second and seconds a step once it is warm, memory, the share of time spent waiting for
data, how often a step makes the host wait for the device and in which lines, and how long a checkpoint stalls the
training. Then every task is stopped, resumed and compared bit for bit with ``deterministic: true``. A preset has a
process of its own, so that a crash costs its rows only; rows for which no time is left are listed as such. Results are
written as they come, and a table is printed at the end. Without a GPU the same is done on the CPU, to test the script.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
ROWS = [("no", False), ("bf16", False), ("fp16", False), ("bf16", True), ("no", True), ("fp16", True)]
"""Precision, compiled: what matters most comes first."""
WARM = 40  # steps that are not counted, in which a compiler works and memory is found
MUON = {"task.init_args.files": "{data}/muon/*.parquet", "task.init_args.held_out": "0"}
GDYNET = {f"task.init_args.{split}_fnames": f"[{{data}}/gdynet/{split}]" for split in ("train", "val", "test")}
SHERLOCK = {"task.init_args.data": "{data}/sherlock", "warmup_steps": "0"}
LARGE = {f"task.init_args.{name}": value for name, value in {  # 235 million parameters
    "encoder_widths": "[2048]", "fusion_widths": "[4096]", "latent": "2048", "voxel_widths": "[8192]",
    "decoder_widths": "[4096]", "checkpointing": "true",
}.items()}  # fmt: skip
LOG_STEPS = 20
PRESETS: dict[str, tuple[str, dict[str, str]]] = {  # example, and what replaces its settings
    "collatz_small": ("collatz_small", {}),
    "collatz": ("collatz", {}),
    "collatz_step_small": ("collatz_step_small", {}),
    "muon_small": ("muon_small", MUON),
    "muon": ("muon", MUON | {"task.init_args.outliers_dir": "{data}/large"}),
    "muon_legacy": ("muon_small", MUON | {"task.init_args.preset": "legacy"}),
    "gdynet_small": ("gdynet_small", GDYNET),
    "gdynet": ("gdynet", GDYNET),
    "tcn_small": ("tcn_small", {"task.init_args.data": "{data}/tcn_small"}),
    "tcn": ("tcn", {"task.init_args.data": "{data}/tcn", "warmup_steps": "0"}),
    "sherlock_small": ("sherlock_small", SHERLOCK),
    "sherlock": ("sherlock", SHERLOCK | LARGE),
}
SIZES = {"muon": (60, 4000), "gdynet": (300, 5000)}
"""Synthetic data of tasks that do not make theirs as they go: tiny, and as recommended."""
EXACT = ("collatz_small", "collatz_step_small", "muon_small", "gdynet_small", "tcn_small", "sherlock_small")
"""Presets that are resumed and compared."""


# -- in the process of a preset ----------------------------------------------------------------------------------------


def make_data(preset: str, folder: str, tiny: bool) -> None:
    from accel_train.registry import find

    name = preset.partition("_")[0]
    if name == "tcn":
        make_shots(preset, folder, tiny)
    if name == "sherlock":
        make_viewers(folder, tiny)
    if name in SIZES and not Path(folder, name).exists():
        task: Any = find(name)
        task.synth(Path(folder, name), 0, SIZES[name][0 if tiny else 1])


def make_shots(preset: str, folder: str, tiny: bool) -> None:
    """Preprocessed shots: the task's own, or random ones that are as long and as finely sampled as real ones."""
    from accel_train.cli import main
    from accel_train.tasks.tcn.synth import synth

    raw, out = Path(folder, preset + "_raw"), Path(folder, preset)
    if out.exists():
        return
    if preset == "tcn_small" or tiny:
        synth(raw, 0, 4 if tiny else 16, val=0, test=0)
        step = ["--step=5", "--dt_ms=0.1"]
    else:
        long_shots(raw, 8, 130_000)
        step = ["--dt_ms=0.01"]
    options = {"out": out, "disrupt": raw / "disrupt", "clear": raw / "clear", "workers": 1 if tiny else 8}
    assert main(["tcn", "preprocess", *step, *(f"--{name}={value}" for name, value in options.items())]) == 0


def make_viewers(folder: str, tiny: bool) -> None:
    """Preprocessed viewers of the task's own film."""
    from accel_train.cli import main
    from accel_train.tasks.sherlock.synth import synth

    raw, out = Path(folder, "sherlock_raw"), Path(folder, "sherlock")
    if out.exists():
        return
    *_, line = synth(raw, 0, 1 if tiny else 3, trs=(60, 50, 40) if tiny else (300, 300, 260)).splitlines()
    arguments = shlex.split(line.replace(f"--out {raw}-prepared", f"--out {out} --gap 5"))
    assert main(arguments[1:]) == 0


def long_shots(folder: Path, count: int, samples: int) -> None:
    """Noise at 100 kHz from -50 ms on, half of it with a disruption at the end."""
    import h5py
    import numpy as np

    for kind in ("disrupt", "clear"):
        Path(folder, kind).mkdir(parents=True)
        rows = ["shot,split,t_disruption"]
        for number in range(kind == "clear", count, 2):
            counts = np.random.default_rng(number).integers(-2000, 2000, (20, 8, samples), np.int16)
            with h5py.File(folder / kind / f"{number + 1}.h5", "w") as file:
                file["LFS"] = counts.astype(np.float32) / 1024
            rows.append(f"{number + 1},train," + (f"{samples / 100 - 60}" if kind == "disrupt" else ""))
        (folder / kind / "meta.csv").write_text("\n".join(rows) + "\n")


def settings_of(preset: str, data: str, output_dir: str, **more: Any) -> tuple[Any, Any]:
    """Task and config of a run without evaluations, in which nothing but the loop is timed."""
    from accel_train.config.read import parse

    example, replaced = PRESETS[preset]
    options = {name: value.format(data=data) for name, value in replaced.items()}
    options |= {
        "output_dir": output_dir, "eval_steps": 0, "save_steps": "null", "logging_steps": LOG_STEPS, "report_to": "[]",
        "monitor_steps": 0, "histogram_steps": 0, "phases": "[]", "num_train_epochs": "null",
        "early_stopping_patience": "null",
    }  # fmt: skip
    options |= more
    command = [f"--{name}={value}" for name, value in options.items()]
    return parse(["--config", str(ROOT / "examples" / f"{example}.yaml"), *command])


class Waits:
    """How often the host waits for the device in a step, by line."""

    def __init__(self, cuda: bool) -> None:
        self.cuda, self.steps, self.lines = cuda, 0, collections.Counter[str]()

    def watch(self, step: Any) -> Any:
        import torch

        def watched(*arguments: Any, **named: Any) -> Any:
            self.steps += 1
            if not self.cuda or self.steps <= WARM or self.steps > 2 * WARM:  # the rest is timed undisturbed
                return step(*arguments, **named)
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    return step(*arguments, **named)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                for warning in caught:
                    if "synchroniz" in str(warning.message):
                        path = Path(warning.filename)
                        self.lines[f"{path.parent.name}/{path.name}:{warning.lineno}"] += 1

        return watched

    def per_step(self) -> float | None:
        """Of one objective."""
        watched = min(self.steps, 2 * WARM) - WARM
        return round(sum(self.lines.values()) / watched, 2) if self.cuda and watched > 0 else None


def train(preset: str, data: str, steps: int, seconds: float, **more: Any) -> dict[str, Any]:
    """One run; what it found. Ends after ``steps`` or ``seconds``, whichever is first."""
    import torch

    from accel_train import Trainer
    from accel_train.tracking.observer import Observer
    from accel_train.train.saving import Saver
    from accel_train.train.step import Stepper

    class Rates(Observer):
        def __init__(self) -> None:
            self.records: list[dict[str, Any]] = []
            self.saves: list[float] = []

        def on_log(self, record: dict[str, Any]) -> None:
            self.records.append(record)
            if time.monotonic() > ends:
                trainer.request_stop("no time left for this row")

    real = Saver.save

    def save(*arguments: Any) -> None:
        started = time.perf_counter()
        real(*arguments)
        rates.saves.append(time.perf_counter() - started)

    cuda = torch.cuda.is_available()
    rates, waits, ends = Rates(), Waits(cuda), time.monotonic() + seconds
    patched = mock.patch.multiple(Saver, save=save), mock.patch.multiple(Stepper, step=waits.watch(Stepper.step))
    with tempfile.TemporaryDirectory() as run, contextlib.redirect_stdout(io.StringIO()), patched[0], patched[1]:
        task, config = settings_of(preset, data, run, max_steps=steps, save_steps=max(steps // 2, 1), **more)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        trainer = Trainer(task, config, observers=[rates])
        started = time.monotonic()
        result = trainer.fit()
        took = time.monotonic() - started
        sizes = [f.stat().st_size for f in Path(run, "checkpoints").glob("step-*/**/*") if f.is_file()]
    warm = [r for r in rates.records if r["step"] >= WARM + LOG_STEPS]  # windows that began warm
    timed = warm or rates.records[-1:]
    found = {
        "steps": result.step,
        "warm": bool(warm),
        "seconds": round(took, 1),
        "loss": next((v for k, v in rates.records[-1].items() if k.endswith("loss")), None),
        "items_per_s": round(statistics.median(r["items_per_s"] for r in timed), 1),
        "step_ms": round(1e3 * statistics.median(r["step_s"] for r in timed), 3),
        "wait_share": round(statistics.median(r["wait_s"] / max(r["step_s"], 1e-9) for r in timed), 4),
        "skipped": sum(r.get("skipped", 0) for r in rates.records),
        "waits_per_step": waits.per_step(),
        "waits_in": dict(waits.lines.most_common(6)),
        "save_ms": round(1e3 * statistics.median(rates.saves), 1) if rates.saves else None,
        "checkpoint_mb": round(sum(sizes) / 1e6 / max(len(rates.saves), 1), 2),
    }
    if cuda:
        found["memory_mib"] = round(max(r.get("cuda/max_alloc_mib", 0) for r in rates.records))
    return found


def resume(preset: str, data: str, steps: int) -> dict[str, Any]:
    """The same run whole, and in two sessions: are the weights equal to the last bit?"""
    import torch

    from accel_train import Trainer
    from accel_train.run.weights import read_weights

    ends = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for name, lengths in (("whole", (steps,)), ("again", (steps,)), ("pieces", (steps // 2, steps))):
            for length in lengths:
                run = f"{folder}/{name}"
                # A constant rate, since the length of the first session must not matter.
                task, config = settings_of(
                    preset, data, run, max_steps=length, deterministic="true", lr_scheduler_type="constant",
                    lr_scheduler_kwargs="{}", warmup_steps=0,
                )  # fmt: skip
                trainer = Trainer(task, config)
                trainer.fit()
            ends.append(read_weights(Path(folder, name, "model"), list(trainer.models)))
    whole, again, pieces = ({f"{m}.{n}": t for m, ts in end.items() for n, t in ts.items()} for end in ends)
    differ = [n for n, t in whole.items() if not torch.equal(t, pieces[n])]
    unlike = [n for n, t in whole.items() if not torch.equal(t, again[n])]
    return {"repeats": not unlike, "resumes": not differ, "tensors": len(whole), "differ": (unlike + differ)[:3]}


def work(options: argparse.Namespace) -> None:
    """Print one JSON line for each row."""
    import torch

    ends = time.monotonic() + options.seconds
    preset, data = options.work, options.data
    make_data(preset, data, options.tiny)
    if options.exact:
        row = {"preset": preset, "row": "resume, deterministic"}
        try:
            row |= resume(preset, data, min(options.steps, 60))
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        print(json.dumps(row), flush=True)
        return
    rows = [(p, c) for p, c in ROWS if not (c and options.no_compile)]
    for i, (precision, compiled) in enumerate(rows):
        name = ("fp32" if precision == "no" else precision) + (", compiled" if compiled else "")
        row: dict[str, Any] = {"preset": preset, "row": name}
        left = ends - time.monotonic()
        try:
            if left < 3:
                raise TimeoutError("not run: no time was left")
            torch.manual_seed(0)
            more = {"torch_compile": "default"} if compiled else {"torch_compile": "null"}
            row |= train(preset, data, options.steps, left / (len(rows) - i), mixed_precision=precision, **more)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        print(json.dumps(row), flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        torch._dynamo.reset()


# -- in the process that was called ------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    import accelerate
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name(0) if cuda else "cpu", "torch": torch.__version__,
        "accelerate": accelerate.__version__, "python": sys.version.split()[0], "cuda": torch.version.cuda,
    }  # fmt: skip


def run_tests(seconds: float) -> dict[str, Any]:
    """``make test-gpu``, with this interpreter."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-q",
        "--continue-on-collection-errors",
        "-p",
        "no:cacheprovider",
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"row": "tests", "error": f"not done in {seconds:.0f} s"}
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {
        "row": "tests",
        "exit": done.returncode,
        "result": lines[-1] if lines else done.stderr[-300:],
        "failed": failed,
    }


def run_worker(preset: str, options: argparse.Namespace, data: str, seconds: float, *more: str) -> list[dict[str, Any]]:
    """The rows of one preset. What it printed before it was ended for taking too long counts."""
    command = [sys.executable, __file__, "--work", preset, "--data", data, "--steps", str(options.steps)]
    command += ["--seconds", str(seconds), *more, *(["--tiny"] if options.tiny else [])]
    command += ["--no_compile"] if options.no_compile else []
    environment = os.environ | {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, cwd=data)
        try:
            process.wait(seconds + 30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        out.seek(0), err.seek(0)
        rows = [json.loads(line) for line in out if line.startswith("{")]
        if process.returncode:
            last = (err.read().strip().splitlines() or [""])[-1]
            rows.append({"preset": preset, "row": "process", "error": f"ended with {process.returncode}: {last[:300]}"})
    return rows


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        f"{'preset':<14} {'row':<22} {'items/s':>10} {'ms/step':>9} {'MiB':>8} {'wait':>6} {'syncs':>6} {'save ms':>8}"
    ]
    for r in results:
        head = f"{r.get('preset', ''):<14} {r['row']:<22} "
        if "items_per_s" in r:
            syncs, memory = r["waits_per_step"], r.get("memory_mib")
            lines.append(
                head + f"{r['items_per_s']:>10,.0f} {r['step_ms']:>9.2f} {'' if memory is None else memory:>8} "
                f"{r['wait_share']:>6.1%} {'' if syncs is None else syncs:>6} {r['save_ms'] or 0:>8.1f}"
                + ("" if r["warm"] else f"  not warm after {r['steps']} steps")
            )
        else:
            shown = (
                r.get("error")
                or r.get("result")
                or ", ".join(f"{k} {v}" for k, v in r.items() if k not in ("preset", "row"))
            )
            lines.append(head + shown)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--no_compile", action="store_true")
    parser.add_argument("--no_tests", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="small data, to try the script")
    for name, kind in (("work", str), ("data", str), ("seconds", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--exact", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options)
    ends = time.monotonic() + 60 * options.minutes
    about, results = machine(), []

    def note(rows: list[dict[str, Any]]) -> None:
        results.extend(rows)
        options.out.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
        for row in rows:
            print(json.dumps(row), flush=True)

    if not options.no_tests:
        note([run_tests(min(90, 15 * options.minutes))])
    jobs = [("rows", preset) for preset in options.only] + [("exact", p) for p in options.only if p in EXACT]
    with tempfile.TemporaryDirectory() as data:
        for i, (kind, preset) in enumerate(jobs):
            # What one does not use is the others'; a quarter is kept for the comparisons at the end.
            weight = {"rows": 3, "exact": 1}
            share = weight[kind] / sum(weight[k] for k, _ in jobs[i:])
            left = (ends - time.monotonic()) * share - 8  # the start of a process and its data
            if left < 3:
                note([{"preset": preset, "row": kind, "error": "not run: no time was left"}])
                continue
            note(run_worker(preset, options, data, left, *(["--exact"] if kind == "exact" else [])))
    print(f"\n{json.dumps(about)}\n{table(results)}\n{options.out}")


if __name__ == "__main__":
    main()
