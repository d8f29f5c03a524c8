"""The command line as a person meets it: quick, typed, and one line for whatever is wrong."""

import json
import os
import shlex
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from accel_train.cli import COMMANDS, main
from accel_train.registry import TASKS

ROOT = Path(__file__).resolve().parent.parent
SMALL = str(ROOT / "examples" / "collatz_small.yaml")
ACCEL_TRAIN = str(Path(sys.executable).parent / "accel-train")

TOY = '''
import numpy as np, torch
from torch import nn
from accel_train import IndexedSource, Loss, Task
from accel_train.errors import UserError

class Data:
    def __len__(self): return 40
    def read(self, indices):
        x = np.random.default_rng(0).normal(size=(40, 4)).astype("f4")[indices]
        return {"x": x, "y": x[:, :1]}

class ToyTask(Task):
    """A small task.

    Args:
        width (int): of the hidden layer.
        rates, betas: two
            of them.
    """
    def __init__(
        self, width: int = 4, rates: tuple[float, float] = (0.5, 0.5), betas: list[int] = [], note: str | None = None
    ):
        if width == 13:
            raise UserError("task.init_args.width: 13 brings bad luck")
        self.width = width
    def build_data(self, split, batch_size, seed): return IndexedSource(Data(), batch_size, seed)
    def build_model(self): return nn.Sequential(nn.Linear(4, self.width), nn.Dropout(0.1), nn.Linear(self.width, 1))
    def loss_step(self, models, batch, totals, objective):
        return Loss(self.error(models, batch) / totals["items"])
    def error(self, models, batch): return ((models["model"](batch["x"]) - batch["y"]) ** 2).sum()
    def eval_step(self, models, batch):
        return {"se": self.error(models, batch), "n": torch.tensor(float(len(batch["x"])))}
    def eval_metrics(self, sums): return {"loss": float(sums["se"] / sums["n"])}

class PathTask(ToyTask):
    def __init__(self, path: str, **kwargs):
        super().__init__(**kwargs)

class NotOne:
    pass
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with a user's own task in it."""
    (tmp_path / "own_toy.py").write_text(TOY)
    (tmp_path / "own_broken.py").write_text("import there_is_no_such_module\n")
    (tmp_path / "own_typo.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def refused(capsys, *arguments: str) -> str:
    """The one line with which a command is refused; nothing else happens."""
    before = sorted(Path.cwd().rglob("*"))
    code = main(list(arguments))
    printed = capsys.readouterr()
    assert code == 2, printed
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and printed.err.endswith("\n")
    assert sorted(Path.cwd().rglob("*")) == before, "nothing half-written"
    return printed.err.removeprefix("accel-train: error: ").rstrip("\n")


# -- what is wrong ---------------------------------------------------------------------------------------------------

TYPOS = [
    # as typed, or as a line of YAML; what it says
    ("max_step", 5, "max_step: no such option (did you mean max_steps?)"),
    ("max-steps", 5, "max-steps: no such option (did you mean max_steps?)"),
    ("lerning_rate", 0.1, "lerning_rate: no such option (did you mean learning_rate?)"),
    ("optimiser", {"class_path": "SGD"}, "optimiser: no such option (did you mean optimizer?)"),
    ("width", 8, "width: no such option (did you mean task.init_args.width?)"),
    ("zzz", 8, "zzz: no such option"),
    ("lr", 0.1, "lr: no such option; it is --learning_rate=..."),
    ("max_epochs", 3, "max_epochs: no such option (did you mean num_train_epochs?)"),
    ("num_processes", 2, "num_processes: no such option; the launcher starts processes: accelerate launch --num"),
    ("optimizer.clas_path", "SGD", "optimizer.clas_path: no such option (did you mean optimizer.class_path?)"),
    ("optimizer.lr", 0.1, "optimizer.lr: no such option"),
    ("webhook.kind", ["stop"], "webhook.kind: no such option (did you mean webhook.kinds?)"),
    ("phases", [{"lenght": 3}], "phases[0].lenght: no such option (did you mean phases[0].length?)"),
    ("optimizers", {"loss": {"learning_rat": 3}}, "optimizers.loss.learning_rat: no such option (did you mean "
     "optimizers.loss.learning_rate?)"),
    ("task.init_args.widht", 8, "task.init_args.widht: no such option (did you mean task.init_args.width?)"),
    ("task.init_arg.width", 8, "task.init_arg: no such option (did you mean task.init_args?)"),
    ("task.width", 8, "task.width: no such option"),
]  # fmt: skip

WRONG = [
    ("max_steps", "x", "max_steps: expected int or null, got 'x'"),
    ("max_steps", 1.5, "max_steps: expected int or null, got "),
    ("max_steps", True, "max_steps: expected int or null, got "),
    ("max_steps", [3], "max_steps: expected int or null, got [3]"),
    ("max_steps", 0, "max_steps: 0 is out of range, must be at least 1"),
    ("global_batch_size", None, "global_batch_size: expected int, got "),
    ("global_batch_size", -8, "global_batch_size: -8 is out of range, must be at least 1"),
    ("learning_rate", "fast", "learning_rate: expected number, got 'fast'"),
    ("learning_rate", -1, "learning_rate: -1.0 is out of range, must be at least 0"),
    ("learning_rate", float("nan"), "learning_rate: nan is out of range, must be at least 0"),
    ("warmup_start_factor", 2, "warmup_start_factor: 2.0 is out of range, must be from 0 to 1"),
    ("requeue_exit_code", 256, "requeue_exit_code: 256 is out of range, must be from 0 to 255"),
    ("deterministic", "perhaps", "deterministic: expected true or false, got 'perhaps'"),
    ("non_finite", "rase", "non_finite: expected skip or raise, got 'rase' (did you mean raise?)"),
    ("mixed_precision", "fp8", "mixed_precision: expected no or bf16 or fp16 or null, got 'fp8'"),
    ("report_to", "wanb", "report_to: unknown 'wanb' (did you mean wandb?); there are"),
    ("report_to", [1, {}], "report_to[0]: expected text, got 1"),
    ("optimizer", "SGD", "optimizer: expected {...}, got 'SGD'"),
    ("optimizer.learning_rate", "fast", "optimizer.learning_rate: expected number or null, got 'fast'"),
    ("optimizers", {"loss": {"learning_rate": -1}}, "optimizers.loss.learning_rate: -1.0 is out of range"),
    ("webhook.status_steps", "often", "webhook.status_steps: expected int, got 'often'"),
    ("webhook.status_steps", -1, "webhook.status_steps: -1 is out of range, must be at least 0"),
    ("phases", [{"length": "3 weeks"}], "phases[0].length: '3 weeks' is not a length; write 1000 or 1000st"),
    ("phases", [{"length": 5, "repeat": 0}], "phases[0].repeat: 0 is out of range, must be at least 1"),
    ("ema_decay", 1, "ema_decay: 1 would never forget"),
    ("phases", [{}, {"length": 5}], "phases[0].length: only the last phase may run until the end"),
    ("eval_steps", "2h", "eval_steps: 2h is wall time"),
    ("max_time", "30ep", "max_time: 30ep is not wall time; write 90s, 30min, 2h or 1d"),
    ("save_steps", "soon", "save_steps: 'soon' is not a length; write 1000 or 1000st (steps), 30ep, 90s, 30min, 2h"),
    ("eval_steps", "soon", "eval_steps: 'soon' is not a length; write 1000 or 1000st (steps), 30ep"),
    ("task.init_args.width", "wide", "task.init_args.width: expected int, got 'wide'"),
    ("task.init_args.width", 13, "task.init_args.width: 13 brings bad luck"),
    ("task.init_args.rates", [1], "task.init_args.rates: expected [number, number], got [1]"),
    ("task.init_args.betas", [1, "x"], "task.init_args.betas[1]: expected int, got 'x'"),
    ("task.init_args", 3, "task.init_args: expected {...}, got "),
    # known only when the run is put together, and still before anything is written
    ("optimizer.class_path", "Adamm", "optimizer.class_path: unknown 'Adamm' (did you mean Adam?)"),
    ("optimizer.class_path", "no_such.Thing", "optimizer.class_path: cannot import 'no_such.Thing'"),
    ("optimizer.init_args", {"betta": 1}, "optimizer.init_args: AdamW has no option 'betta' (did you mean betas?)"),
    ("optimizers", {"los": {}}, "optimizers: unknown objective 'los' (did you mean loss?)"),
    ("lr_scheduler_type", "cosin", "lr_scheduler_type: unknown 'cosin' (did you mean cosine?)"),
    ("lr_scheduler_kwargs", {"minlr": 1}, "lr_scheduler_kwargs: constant has no option 'minlr'"),
    ("phases", [{"objectives": ["los"]}], "phases[0].objectives: unknown 'los' (did you mean loss?); there are loss"),
    ("max_steps", None, "nothing says when to stop: give max_steps or num_train_epochs"),
    ("report_to", ["tensorbord"], "report_to: unknown 'tensorbord' (did you mean tensorboard?)"),
    ("torch_compile", "nomode", "torch_compile: Unrecognized mode=nomode"),
    ("report_to", "wandb,mlflow", "report_to: unknown 'wandb,mlflow' (write '[wandb,mlflow]'); there are"),
    ("output_dir", "own_toy.py", "output_dir: own_toy.py cannot be made"),
    ("output_dir", "own_toy.py/run", "output_dir: own_toy.py/run cannot be made"),
    ("init_from", "nowhere", "nowhere"),
    ("resume_from_checkpoint", "nowhere", "checkpoint nowhere does not exist"),
    (
        "resume_from_checkpoint",
        "true",
        "checkpoint true does not exist; resume_from_checkpoint is auto, never or a path",
    ),
]


def typed(value) -> str:
    return value if isinstance(value, str) else json.dumps(value).replace("NaN", ".nan")


@pytest.mark.parametrize(("key", "value", "says"), TYPOS + WRONG, ids=lambda v: str(v)[:40])
def test_refused_in_one_line(here, capsys, key, value, says):
    line = refused(capsys, "train", "--task=own_toy.ToyTask", "--max_steps=3", f"--{key}={typed(value)}")
    assert line.startswith(says) or says == "nowhere" in line


@pytest.mark.parametrize(("key", "value", "says"), TYPOS + WRONG, ids=lambda v: str(v)[:40])
def test_refused_in_the_same_words_from_yaml(here, capsys, key, value, says):
    tree: dict = {"task": {"class_path": "own_toy.ToyTask"}, "max_steps": 3}
    node = tree
    *parents, last = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    Path("bad.yaml").write_text(yaml.safe_dump(tree))
    line = refused(capsys, "train", "--config", "bad.yaml")
    assert line.startswith(says) or says == "nowhere" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "unknown command 'trian' (did you mean train?); there are init, train, evaluate,"),
        (["train", "--max_steps=3"], "task: missing; give --task=NAME or a YAML file"),
        (["train", "--task=colatz"], "task: unknown 'colatz' (did you mean collatz?); there are collatz"),
        (["train", "--task", "own_toy.ToyTaks"], "task: 'own_toy.ToyTaks' does not exist (did you mean ToyTask?)"),
        (["train", "--task", "own_toy.NotOne"], "task: 'own_toy.NotOne' is not a Task"),
        (["train", "--task", "own_tyo.ToyTask"], "task: cannot import 'own_tyo.ToyTask': No module named 'own_tyo'"),
        (["train", "--task", "own_broken.Task"], "task: cannot import 'own_broken.Task': No module named 'there_is"),
        (["train", "--task", "own_typo.Task"], "task: cannot import 'own_typo.Task': invalid syntax (own_typo.py"),
        (["train", "--task", ".Task"], "task: "),
        (["train", "--task=own_toy.PathTask", "--max_steps=3"], "task.init_args.path: missing; PathTask needs it"),
        (["train", "--task={init_args: {}}"], "task: expected a name, or class_path and init_args, got "),
        (["train", "--task=own_toy.PathTask", "--task.init_args.widt=3", "--task.init_args.path=x"],
         "task.init_args.widt: no such option (did you mean task.init_args.width?)"),
        (["train", "--config", "none.yaml"], "--config none.yaml: No such file or directory"),
        (["train", "--config", "."], "--config .: Is a directory"),
        (["train", "--config", "https://a.b/x.yaml"], "--config https://a.b/x.yaml: a URL; copy the file first"),
        (["evaluate", "https://a.b/x"], "evaluate: argument run: https://a.b/x is a URL"),
        (["train", "--config=broken.yaml"], "--config broken.yaml: line 2: "),
        (["train", "--config=twice.yaml"], "--config twice.yaml: line 2: seed is given twice"),
        (["train", "--config=binary.yaml"], "--config binary.yaml: not YAML"),
        (["train", "--config=list.yaml"], "--config list.yaml: expected lines of KEY: VALUE"),
        (["train", "--config=empty.yaml"], "--config empty.yaml: expected lines of KEY: VALUE"),
        (["train", "--config=braces.yaml"], "--config braces.yaml: line 2: a key must be a name (is {{ }} a template"),
        (["train", "--config=utf16.yaml"], "--config utf16.yaml: not YAML in UTF-8: it begins like UTF-16"),
        (["train", "--config=latin1.yaml"], "--config latin1.yaml: not YAML: line 2 has the byte 0xe9"),
        (["train", "--config=control.yaml"], "--config control.yaml: not YAML: line 2 has special characters"),
        (["train", "--config=bom.yaml"], "seed: expected int, got 'x'"),
        (["train", "--config=tag.yaml"], "--config tag.yaml: line 1: could not determine a constructor for the tag"),
        (["train", "--config=int.yaml"], "--config int.yaml: line 1: 'abc' is no int"),
        (["train", "--config=tab.yaml"], "--config tab.yaml: line 2: found character"),
        (["train", "--config=merge.yaml"], "--config merge.yaml: line 1: expected a mapping or list of mappings"),
        (["train", "--config=two.yaml"], "--config two.yaml: line 2: expected a single document in the stream"),
        (["train", "--config=deep.yaml"], "--config deep.yaml: nested too deeply"),
        (["train", "--config=laughs.yaml"], "--config laughs.yaml: line "),
        (["train", "--config=itself.yaml"], "--config itself.yaml: line 1: this means far too many values"),
        (["train", "--config=number.yaml"], "1: no such option"),
        (["train", "--config=null.yaml"], "task: missing; give --task=NAME"),
        (["train", "--config=pipe"], "--config pipe: neither a file nor a folder"),
        (["train", "--config=/dev/zero"], "--config /dev/zero: neither a file nor a folder"),
        (["train", "--config=loop"], "--config loop: Too many levels of symbolic links"),
        (["train", "--task=own_toy.ToyTask", "--seed={{x}}"], "seed: expected int, got '{{x}}'"),
        (["train", "--task=own_toy.ToyTask", "--optimizer={"], "optimizer: expected {...}, got '{'"),
        (["train", "--task=own_toy.ToyTask", "--task.init_args.betas=["], "task.init_args.betas: expected [int, ...]"),
        (["train", "--task=own_toy.ToyTask", "--seed"], "--seed: expected a value, as in --seed=VALUE"),
        (["train", "--seed", "--task=own_toy.ToyTask"], "--seed: expected a value, as in --seed=VALUE"),
        (["train", "some.yaml"], "some.yaml: expected --KEY=VALUE (a YAML file is given as --config FILE)"),
        (["train", "-x"], "-x: expected --KEY=VALUE"),
        (["train", "--task=own_toy.ToyTask", "--max_steps=1", "--task.init_args.width=13", "--print_config"],
         "task.init_args.width: 13 brings bad luck"),
        (["tasks", "--all"], "tasks: unrecognized arguments: --all"),
        (["status"], "status: the following arguments are required: run"),
        (["status", "nowhere"], "status: nowhere/status.json does not exist; is nowhere a run folder?"),
        (["stop", "nowhere"], "stop: nowhere: no such folder (relative to"),
        (["synth", "collatz"], "synth: the following arguments are required: --out"),
        (["synth", "tcn", "--out=x", "--kind", "herd"], "kind: expected easy or hard, got 'herd' (did you mean hard?)"),
        (["synth", "tcn", "--out=x", "--kind"], "--kind: expected a value, as in --kind=VALUE"),
        (["synth", "colatz", "--out=x"], "task: unknown 'colatz' (did you mean collatz?)"),
        (["synth", "own_toy.ToyTask", "--out=x"], "synth: this task makes its data as it goes and needs none"),
        (["evaluate", "nowhere"], "nowhere: "),
        (["export", "nowhere", "--out=x"], "nowhere: "),
        (["inspect", "nowhere"], "inspect: 'nowhere': there is no such file or folder"),
        (["runs"], "runs: the following arguments are required: ACTION"),
        (["runs", "merge", "--dst=x"], "runs merge: the following arguments are required: --src-root"),
        (["runs", "merge", "--dst=x", "--src-root=nowhere"], "nowhere: no such folder"),
        (["runs", "merge", "--dst=x", "--src-root=.", "--mode=move"], "runs merge: argument --mode: invalid choice"),
    ],
    ids=lambda v: " ".join(v)[:50] if isinstance(v, list) else "",
)  # fmt: skip
def test_refused_commands(here, capsys, arguments, says):
    Path("broken.yaml").write_text("seed: 1\n  max_steps: : 3\n")
    Path("twice.yaml").write_text("seed: 1\nseed: 2\n")
    Path("list.yaml").write_text("- seed\n")
    Path("empty.yaml").write_text("")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for name, text in ODD_YAML.items():
        Path(f"{name}.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    assert refused(capsys, *arguments).startswith(says)


ODD_YAML = {
    "braces": "max_steps: 3\noutput_dir: {{ run_dir }}\n",
    "utf16": "seed: 1\n".encode("utf-16"),
    "latin1": b"seed: 1\noutput_dir: caf\xe9\n",
    "control": b'seed: 1\noutput_dir: "\x00"\n',
    "bom": b"\xef\xbb\xbftask: collatz\nseed: x\n",
    "tag": "seed: !!python/object/apply:os.system [ls]\n",
    "int": "seed: !!int abc\n",
    "tab": "task: collatz\n\tseed: 1\n",
    "merge": "<<: 3\n",
    "two": "seed: 1\n---\nseed: 2\n",
    "deep": f"a: {'[' * 3000}{']' * 3000}\n",
    "laughs": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
    "itself": "a: &a [*a]\n",
    "number": "task: collatz\n1: 2\n",
    "null": "task:\n",
}


@pytest.mark.parametrize(
    "folder", ["a" * 300, "x/" + "a" * 300 + "/x", "/proc/x/y", "nul\0byte", "dangling/x", "loop", "~/file"]
)
@pytest.mark.parametrize("command", ["train", "export", "synth"])
def test_an_impossible_folder_is_refused_before_the_work(here, capsys, monkeypatch, folder, command):
    monkeypatch.setenv("HOME", str(here))
    Path("file").write_text("")
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    arguments = {
        "train": ["--task=own_toy.ToyTask", "--max_steps=2", f"--output_dir={folder}"],
        "export": ["run", f"--out={folder}"],
        "synth": ["muon", f"--out={folder}"],
    }
    name = "output_dir" if command == "train" else "--out"
    line = refused(capsys, command, *arguments[command])
    assert line.startswith(f"{name}: ") and "cannot be made: " in line and len(line) < 300


def test_an_unknown_metric_is_refused_with_the_known_ones(here, capsys):
    arguments = ["--task=own_toy.ToyTask", "--max_steps=2", "--metric_for_best_model=los", "--output_dir=run"]
    assert main(["train", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "metric_for_best_model: the evaluation gives no 'los'" in printed and "loss" in printed


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_one_rank_speaks(here, capsys, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    assert main(["train", "--task=own_toy.ToyTask", "--max_step=3"]) == 2
    assert capsys.readouterr().err.count("\n") == (rank == "0")


# -- what is right ---------------------------------------------------------------------------------------------------


def test_a_users_own_class_from_the_working_directory(here, capsys):
    arguments = ["--max_steps=2", "--report_to=[]", "--global_batch_size=8", "--output_dir=run"]
    assert main(["train", "--task", "own_toy.ToyTask", "--task.init_args.width=3", *arguments]) == 0
    assert "accel-train train --config run/config.yaml --max_steps=4" in capsys.readouterr().out
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["task"]["class_path"] == "own_toy.ToyTask"
    assert config["task"]["init_args"] == {"width": 3, "rates": [0.5, 0.5], "betas": [], "note": None}
    environment = json.loads(Path("run/environment.json").read_text())
    assert environment["versions"]["torch"] and environment["seed"] == 0
    assert {"command", "git", "python", "host", "world_size", "device"} <= environment.keys()


def test_the_saved_config_repeats_the_run(here):
    given = ["--config", SMALL, "--max_steps=5", "--global_batch_size=16", "--report_to=[]", "--eval_steps=0"]
    given += ["--task.init_args.d_model=16", "--task.init_args.dropout=0.1", "--task.init_args.num_layers=1"]
    given += ["--task.init_args.hard_shares=[0.5, 0.25, 0.25]", "--monitor_steps=0"]
    assert main(["train", *given, "--output_dir=one"]) == 0
    assert main(["train", "--config=one/config.yaml", "--output_dir=two"]) == 0
    one, two = (Path(run, "model", "model.safetensors").read_bytes() for run in ("one", "two"))
    assert one == two
    assert main(["train", "--config=one/config.yaml", "--output_dir=three", "--seed=1"]) == 0
    assert Path("three/model/model.safetensors").read_bytes() != one


def test_print_config_reads_back_as_the_same(here, capsys):
    given = ["--config", SMALL, "--max_steps=1e5", "--optimizer.init_args.weight_decay=1e-2", "--webhook.milestones=7"]
    assert main(["train", *given, "--print_config"]) == 0
    first = capsys.readouterr().out
    assert not any(line.lstrip().startswith("#") for line in first.splitlines())
    Path("printed.yaml").write_text(first)
    assert main(["train", "--config=printed.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == first
    tree = yaml.safe_load(first)
    assert (tree["max_steps"], tree["optimizer"]["init_args"]) == (100000, {"weight_decay": 0.01})
    assert next(iter(tree)) == "task" and tree["webhook"]["milestones"] == 7


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    try:
        assert main([command, "--help"]) == 0
    except SystemExit as done:
        assert done.code == 0
    assert capsys.readouterr().out.startswith(f"usage: accel-train {command}")


@pytest.mark.parametrize("what", ["a b.parquet", "data/*.parquet", "pelican://federation.org/x/*.parquet"])
def test_files_and_patterns_reach_inspect_as_they_are(capsys, monkeypatch, what):
    asked = []
    monkeypatch.setattr("accel_train.commands.inspect.look_at", lambda *given, trust: asked.append(given) or "shown")
    assert main(["inspect", what, "other.parquet", "--rows=3"]) == 0
    assert asked == [(what, ["other.parquet", "--rows=3"])] and capsys.readouterr().out == "shown\n"


def test_what_to_do_next_can_be_pasted(here, capsys):
    assert main(["train", "--task=own_toy.ToyTask", "--max_steps=2", "--output_dir=my runs/50%"]) == 0
    said = {line.split()[0]: shlex.split(line) for line in capsys.readouterr().out.splitlines() if line[:2] == "  "}
    assert said["look"][-1] == "my runs/50%/tensorboard" and "my runs/50%" in said["evaluate"]
    assert "my runs/50%/config.yaml" in said["train"]


def test_runs_are_merged_as_trained(here, capsys):
    for name in ("one", "two", "three"):
        assert main(["train", "--task=own_toy.ToyTask", "--max_steps=2", f"--output_dir=runs/{name}"]) == 0
    capsys.readouterr()
    arguments = ["runs", "merge", "--dst=my logs", "--src-root", "runs", "--match=^t"]
    assert main(arguments) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["three", "two"] and all(line.endswith("linked") for line in lines)
    assert last.endswith("tensorboard --logdir 'my logs'")
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("unchanged") == 2
    assert Path("my logs/two").resolve() == Path("runs/two/tensorboard").resolve()
    started = json.loads(Path("runs/one/environment.json").read_text())["started"]
    assert abs(time.time() - datetime.fromisoformat(started).timestamp()) < 100


def test_a_run_is_as_old_as_its_first_session(here, capsys):
    run = ["train", "--task=own_toy.ToyTask", "--output_dir=run", "--report_to=[]"]
    assert main([*run, "--max_steps=2"]) == 0
    path = Path("run/environment.json")
    path.write_text(json.dumps({"started": "2026-01-05T10:53:30+00:00"}))
    started = lambda: json.loads(path.read_text())["started"]  # noqa: E731
    assert main([*run, "--max_steps=3"]) == 0
    assert started() == "2026-01-05T10:53:30+00:00"
    path.write_text("torn")
    assert main([*run, "--max_steps=4"]) == 0
    assert datetime.fromisoformat(started()).tzinfo is not None
    path.write_text(json.dumps({"started": "2026-01-05T10:53:30+00:00"}))
    assert main([*run, "--max_steps=4", "--resume_from_checkpoint=never"]) == 0
    assert not started().startswith("2026-01-05")


def test_help_says_how_to_see_the_options_of_a_task(here, capsys):
    main(["train", "--help"])
    assert "train --task=NAME --help" in " ".join(capsys.readouterr().out.split())
    for arguments in (["--task=own_toy.ToyTask", "--help"], ["--help", "--task", "own_toy.ToyTask", "--max_steps=3"]):
        main(["train", *arguments])
        text = " ".join(capsys.readouterr().out.split())
        assert "--task.init_args.width int of the hidden layer. (default: 4)" in text
        assert "--task.init_args.betas [int, ...] two of them. (default: [])" in text
    main(["train", "--task=own_toy.PathTask", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--task.init_args.path text (required)" in text and "--task.init_args.width" in text


# -- in processes of their own ---------------------------------------------------------------------------------------

PROBE = """
import sys
import accel_train
assert "yaml" not in sys.modules
from accel_train.cli import main
for arguments in (["--help"], ["tasks"], ["--version"], ["train", "--help"], ["train", "--task=collatz", "--help"],
                  ["train", "--config", sys.argv[1], "--print_config"]):
    assert main(arguments) == 0
heavy = {"torch", "accelerate", "datasets", "tensorboard"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_options_of_train_change_only_when_that_is_meant(capsys, monkeypatch):
    """COLUMNS=100 accel-train train --help > tests/train_help.txt, and a line in CHANGELOG.md."""
    monkeypatch.setenv("COLUMNS", "100")
    main(["train", "--help"])
    assert capsys.readouterr().out == (Path(__file__).parent / "train_help.txt").read_text()


def test_no_help_imports_torch():
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROBE, SMALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "accel_train 0." in done.stdout and "collatz" in done.stdout


def test_help_answers_within_a_second():
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([ACCEL_TRAIN, "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1.0


def test_the_installed_command(here):
    """No warning, no traceback, the right exit codes; the working directory is where tasks are looked for."""
    run = ["--task=own_toy.ToyTask", "--max_steps=2", "--report_to=[]", "--eval_steps=0", "--output_dir=run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    good = subprocess.run([ACCEL_TRAIN, "train", *run], capture_output=True, text=True, env=environment)
    assert (good.returncode, good.stderr) == (0, "")
    bad = subprocess.run([ACCEL_TRAIN, "train", *run, "--max_step=5"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert bad.stderr == "accel-train: error: max_step: no such option (did you mean max_steps?)\n"
    module = subprocess.run([sys.executable, "-m", "accel_train", "tasks"], capture_output=True, text=True)
    assert module.returncode == 0 and "accel_train.tasks.collatz.task.CollatzTask" in module.stdout


def test_a_run_that_has_ended_is_not_asked_to_stop(here, capsys):
    assert main(["train", "--task=own_toy.ToyTask", "--max_steps=2", "--output_dir=run"]) == 0
    assert main(["stop", "run"]) == 0
    assert capsys.readouterr().out.endswith("run is not running (completed): nothing to stop\n")
    assert not list(Path("run").rglob("stop"))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_can_be_named_without_torch(name):
    """Help, inspect and the reading of a config import the class; a second of waiting is for those who need it."""
    script = f"import sys; from accel_train.registry import find; find({name!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
