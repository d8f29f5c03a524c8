"""What the repository shows a stranger really works: example configs, launch configs, README, pages, notebook."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from accel_train import Trainer
from accel_train.cli import main
from accel_train.config.read import parse
from accel_train.registry import find
from accel_train.tracking.jsonl import histories

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "examples").glob("*.yaml"))
LAUNCH_CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
TINY = {  # task -> overrides that make any of its examples small
    "collatz_step": [
        "--task.init_args.d_model=8", "--task.init_args.num_layers=1", "--task.init_args.nhead=2",
        "--task.init_args.dim_feedforward=16", "--task.init_args.digits=4", "--task.init_args.eval_rows=16",
    ],
    "collatz": [
        "--task.init_args.d_model=8", "--task.init_args.num_layers=1", "--task.init_args.nhead=2",
        "--task.init_args.dim_feedforward=16", "--task.init_args.max_len=70", "--task.init_args.prefix=16",
        "--task.init_args.eval_rows=16",
    ],
    "muon": ["--task.init_args.held_out=0.3", "--task.init_args.hidden_dim=8", "--task.init_args.critic_steps=1"],
    "gdynet": ["--task.init_args.atom_fea_len=6", "--task.init_args.num_gaussians=8"],
    "tcn": [
        "--task.init_args.nsub=768", "--task.init_args.twarn_ms=150", "--task.init_args.levels=3",
        "--task.init_args.nhid=4", "--task.init_args.kernel_size=7", "--task.init_args.dilation_base=4",
        "--task.init_args.nrecept_target=253",
    ],
    "sherlock": ["--task.init_args.encoder_widths=[8]", "--task.init_args.latent=4", "--task.init_args.lags=4"],
}  # fmt: skip


def overrides(path: Path, folder: Path, steps: int) -> list[str]:
    """The command line of an example made tiny."""
    tiny = next((small for name, small in TINY.items() if path.name.startswith(name)), [])
    return [
        "--config", str(path), *tiny, f"--output_dir={folder}", f"--max_steps={steps}", "--global_batch_size=8",
        "--logging_steps=1", "--report_to=[]",
    ]  # fmt: skip


def shots(task: Any, raw: Path, out: Path) -> None:
    task.synth(raw, size=4, val=2, test=0)
    folders = [f"--{name}={raw / name}" for name in ("disrupt", "clear")]
    assert main(["tcn", "preprocess", f"--out={out}", *folders, "--dt_ms=0.1", "--step=5"]) == 0


def viewers(task: Any, raw: Path, out: Path) -> None:
    *_, line = task.synth(raw, size=1, trs=(60, 40)).splitlines()
    name, *arguments = shlex.split(line.replace(f"--out {raw}-prepared", f"--out {out} --gap 5"))
    assert name == "accel-train" and main(arguments) == 0


PREPARED = {"tcn": shots, "sherlock": viewers}


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


# -- training configs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_an_example_config_parses_and_trains_two_steps(path: Path, tmp_path: Path):
    task, _ = parse(["--config", str(path)])
    more = []
    if "files" in task.init_args:  # it needs data
        task.synth(tmp_path / "data", size=300)
        more = [f"--task.init_args.files={tmp_path}/data/*.parquet"]
    elif "train_fnames" in task.init_args:
        task.synth(tmp_path / "data", size=60)
        more = [f"--task.init_args.{split}_fnames=[{tmp_path}/data/{split}]" for split in ("train", "val", "test")]
    elif "data" in task.init_args:
        PREPARED[task.task_name()](task, tmp_path / "raw", tmp_path / "data")
        more = [f"--task.init_args.data={tmp_path}/data"]
    task, config = parse([*overrides(path, tmp_path / "run", steps=2), *more])
    result = Trainer(task, config).fit()
    losses = [values for name, values in result.history.items() if name.endswith("loss") and "eval" not in name]
    assert result.outcome == "completed" and result.step == 2 and losses and all(len(v) == 2 for v in losses)


def test_the_full_size_config_is_that_of_the_guide():
    task, config = parse(["--config", str(ROOT / "examples" / "collatz.yaml")])
    sizes = {name: task.init_args[name] for name in ("d_model", "num_layers", "nhead", "dim_feedforward", "max_len")}
    assert sizes == {"d_model": 128, "num_layers": 4, "nhead": 4, "dim_feedforward": 512, "max_len": 500}
    assert task.init_args["dropout"] == 0.1 and task.init_args["hard_ratio"] == 0.5
    assert (config.max_steps, config.global_batch_size, config.num_workers) == (1_000_000, 512, 1)
    assert (config.learning_rate, config.lr_scheduler_type, config.lr_scheduler_kwargs) == (
        1e-4,
        "cosine",
        {"min_lr": 1e-6},
    )
    assert (config.optimizer.class_path, config.max_grad_norm, config.mixed_precision) == ("AdamW", 1.0, "bf16")
    assert (config.logging_steps, config.save_steps, config.save_keep_every) == (100, 1000, 100_000)
    assert (config.eval_steps, config.monitor_steps, config.webhook.status_steps) == (5000, 500, 500)


# -- launch configs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", LAUNCH_CONFIGS, ids=lambda path: path.name)
def test_a_launch_config_is_one_that_accelerate_reads(path: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    loaded = load_config_from_file(str(path))
    assert loaded.mixed_precision == "no"  # the training config decides
    assert loaded.num_processes >= 1 and loaded.compute_environment.value == "LOCAL_MACHINE"


def test_two_launched_processes_give_the_loss_of_one(tmp_path: Path):
    """The command in the head of cpu_2proc.yaml. That of cpu.yaml is launched in faults/test_signals.py."""
    example = ROOT / "examples" / "collatz_small.yaml"
    command = [
        sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet",
        "--config_file", "accelerate_configs/cpu_2proc.yaml", "-m", "accel_train", "train",
        *overrides(example, tmp_path / "two", steps=3),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    assert main(["train", *overrides(example, tmp_path / "one", steps=3)]) == 0
    alone, together = (histories(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert together["step"] == [1, 2, 3]
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["world_size"] == 2
    for name in ("loss", "next", "stop", "grad_norm", "eval_loss"):
        assert together[name] == pytest.approx(alone[name], rel=1e-5)


# -- pages and notebook ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pages", [["README.md"], ["docs/writing_a_task.md", "docs/task_recipes.md"]], ids=str)
def test_the_python_of_pages_runs(pages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "page"}
    for page in pages:
        found = blocks(ROOT / page)
        assert found
        for block in found:
            exec(compile(block, page, "exec"), space)


def test_the_quick_start_of_the_guide_of_sherlock_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As the page has it, but for 4 epochs, on two short runs of one viewer."""
    from accel_train.tasks.sherlock import SherlockTask

    monkeypatch.chdir(tmp_path)
    viewers(SherlockTask, tmp_path / "raw", tmp_path / "data/sherlock/prepared")
    (block,) = blocks(ROOT / "docs/tasks/sherlock.md")
    space: dict[str, Any] = {"__name__": "page"}
    assert "num_train_epochs=100" in block
    exec(compile(block.replace("=100", "=4"), "sherlock.md", "exec"), space)
    assert space["trainer"].config.learning_rate == 1e-4 and space["trainer"].config.global_batch_size == 64
    assert space["history"]["eval_step"] == [4] and space["history"]["eval_fmri_r"]


def test_the_task_of_the_page_does_not_depend_on_the_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "page"}
    exec(compile(blocks(ROOT / "docs" / "writing_a_task.md")[0], "page", "exec"), space)
    settings = {"max_steps": 10, "global_batch_size": 100, "learning_rate": 0.1, "report_to": []}
    weights = []
    for limit in (None, 7):
        trainer = Trainer(space["LineTask"](), output_dir=f"cut{limit}", micro_batch_size=limit, **settings)
        trainer.fit()
        weights.append(trainer.models["model"].weight.item())
    assert weights[0] == pytest.approx(weights[1], rel=1e-5) and weights[0] != 0


def test_the_cells_of_the_notebook_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    notebook = json.loads((ROOT / "examples" / "notebook_collatz.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    small = [(r"d_model=64, num_layers=2", "d_model=8, num_layers=1, nhead=2"), (r"eval_rows=1024", "eval_rows=32")]
    small += [
        (r"global_batch_size=128", "global_batch_size=8"),
        (r"logging_steps=10, eval_steps=50", "logging_steps=1, eval_steps=2"),
    ]
    small += [(r"max_steps=200", "max_steps=4"), (r"max_steps=300", "max_steps=6")]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    for pattern, value in small:
        text, count = re.subn(pattern, value, text)
        assert count, f"the notebook no longer says {pattern}"
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "notebook"}
    exec(compile(text, "notebook", "exec"), space)
    assert space["result"].step == 6 and space["result"].history["step"] == [1, 2, 3, 4, 5, 6]
    assert "T = 111" in capsys.readouterr().out


# -- links -----------------------------------------------------------------------------------------------------------


PAGES = ["README.md", "CONTRIBUTING.md", *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/**/*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_to_exists(page: str):
    text = (ROOT / page).read_text()
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]
    paths = re.findall(r"`((?:tests|examples|benchmarks|accelerate_configs)/[\w/.]+\.(?:py|yaml|sh|ipynb))`", text)
    missing = [link for link in links if link and not ((ROOT / page).parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    tests = re.findall(r"`((?:\w+/)*test_\w+\.py)`", text)  # the tables of options leave out the folder
    missing += [path for path in tests if not (ROOT / path).exists() and not (ROOT / "tests" / path).exists()]
    assert not missing


@pytest.mark.parametrize("name", ["collatz", "collatz_step"])
def test_the_page_of_a_task_has_every_option(name: str):
    page = "docs/tasks/collatz.md"
    task: Any = find(name)()
    for option in task.init_args:
        assert f"`{option}`" in (ROOT / page).read_text(), f"{page} does not mention {option}"
