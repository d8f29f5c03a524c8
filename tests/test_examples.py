"""What the repository shows a stranger really works: example configs, launch configs, README, pages, notebook."""

from __future__ import annotations

import ast
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
from accel_train.testing import assert_exact
from accel_train.tracking.jsonl import histories

ROOT = Path(__file__).parent.parent
ELSEWHERE = "hf_language_model.yaml"  # tests/test_hf_language_model.py trains it
CONFIGS = sorted(path for path in (ROOT / "examples").glob("*.yaml") if path.name != ELSEWHERE)
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


def small(path: Path, folder: Path, *further: str) -> tuple[Any, Any]:
    """The task and config of an example made tiny, on data that are made here, for two steps."""
    task, _ = parse(["--config", str(path)])
    more = []
    if "files" in task.init_args:  # it needs data
        task.synth(folder / "data", size=300)
        more = [f"--task.init_args.files={folder}/data/*.parquet"]
    elif "train_fnames" in task.init_args:
        task.synth(folder / "data", size=60)
        more = [f"--task.init_args.{split}_fnames=[{folder}/data/{split}]" for split in ("train", "val", "test")]
    elif "data" in task.init_args:
        PREPARED[task.task_name()](task, folder / "raw", folder / "data")
        more = [f"--task.init_args.data={folder}/data"]
    return parse([*overrides(path, folder / "run", steps=2), *more, *further])


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in CONFIGS if "small" in path.name], ids=lambda path: path.name)
def test_an_example_keeps_the_laws(path: Path, tmp_path: Path):
    task, _ = parse(["--config", str(path)])
    without = ["--task.init_args.dropout=0"] if "dropout" in task.init_args else []
    task, config = small(path, tmp_path, *without)
    assert_exact(task, mixed_precision="no", phases=config.phases, max_grad_norm=config.max_grad_norm)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_an_example_config_parses_and_trains_two_steps(path: Path, tmp_path: Path):
    task, config = small(path, tmp_path)
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


NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SMALL = {  # what makes a notebook tiny; each must be in it
    "notebook_collatz": {
        "d_model=32, num_layers=2, nhead=4": "d_model=8, num_layers=1, nhead=2", "eval_rows=512": "eval_rows=32",
        "global_batch_size=64": "global_batch_size=8", "max_steps=100": "max_steps=4", "max_steps=200": "max_steps=6",
        "logging_steps=10, eval_steps=50": "logging_steps=1, eval_steps=2",
    },
    "notebook_gdynet": {"size=4000": "size=60", "logging_steps=25": "logging_steps=1, global_batch_size=32"},
}  # fmt: skip


def cells_of(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_what_it_shows(path: Path):
    """Pictures among it, and no warning; it was run from top to bottom, and is small."""
    cells = cells_of(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert path.stat().st_size < 700_000 and str(Path.home()) not in path.read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_cells_of_a_notebook_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Much smaller; what was kept as a picture is one again."""
    formatters = pytest.importorskip("IPython.core.formatters")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "notebook"}
    small = dict(SMALL[path.stem])
    for cell in cells_of(path):
        text = "".join(cell["source"])
        for there in [there for there in small if there in text]:
            text = text.replace(there, small.pop(there))
        *statements, last = ast.parse(text).body
        exec(compile(ast.Module(statements, []), path.name, "exec"), space)
        if isinstance(last, ast.Expr):
            shown, _ = formatters.DisplayFormatter().format(
                eval(compile(ast.Expression(last.value), path.name, "eval"), space)
            )
            kept = [output for output in cell["outputs"] if output["output_type"] == "execute_result"]
            assert ("image/png" in shown) == any("image/png" in output["data"] for output in kept)
        else:
            exec(compile(ast.Module([last], []), path.name, "exec"), space)
    assert not small, "the notebook no longer says so"
    assert space["result"].outcome == "completed" and space["found"].metrics


@pytest.mark.slow
def test_a_kernel_shows_pictures_and_a_moving_line_and_no_warning(tmp_path: Path):
    """A notebook as Jupyter runs it."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [
        "from accel_train import Trainer\nfrom accel_train.tasks.collatz.task import CollatzTask\n"
        "task = CollatzTask(d_model=8, num_layers=1, nhead=2, max_len=70, prefix=16, eval_rows=16)\n"
        "result = Trainer(task, output_dir='run', max_steps=4, global_batch_size=8, report_to=[]).fit()",
        "result.plot()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    trained, shown = (cell["outputs"] for cell in notebook.cells)
    assert {output.get("name", output["output_type"]) for output in trained} == {"stdout", "display_data"}
    assert [list(output["data"]) for output in shown] == [["text/plain", "image/png"]]


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
