"""The commands of the program, by name."""

from __future__ import annotations

from accel_train.command import Command, by_name

COMMANDS = by_name(
    Command("init", "copy example configs and launch files to where you work", "accel_train.commands.init"),
    Command("train", "train a task, or go on with a run", "accel_train.commands.train", raw=True),
    Command("evaluate", "metrics and figures of a run's best model on held-out data", "accel_train.commands.evaluate"),
    Command(
        "export",
        "a run's best model as safetensors with what is needed to rebuild it",
        "accel_train.commands.export",
    ),
    Command(
        "inspect",
        "what is in a run folder, a checkpoint, data files, or a task's data",
        "accel_train.commands.inspect",
    ),
    Command("verify", "train parts of a run once more and compare every bit", "accel_train.commands.verify"),
    Command("diff", "where two runs part, and by what", "accel_train.commands.diff"),
    Command("step", "look at one step of a run, as it was", "accel_train.commands.step"),
    Command("synth", "make a small data set with known truth for a task", "accel_train.commands.synth"),
    Command(
        "runs",
        "several runs together: a table, their logs in one directory, the spread of metrics",
        "accel_train.commands.runs",
    ),
    Command("status", "how a running or finished run stands", "accel_train.commands.status"),
    Command("stop", "ask a running run to save and stop", "accel_train.commands.request"),
    Command("save", "ask a running run for a checkpoint now", "accel_train.commands.request"),
    Command("tasks", "list the tasks", "accel_train.commands.tasks"),
    Command("schema", "the JSON schema of configs, for editors that check YAML", "accel_train.commands.schema"),
    Command("completion", "let the shell complete commands and options", "accel_train.commands.completion", raw=True),
    Command("doctor", "what this machine can do", "accel_train.commands.doctor"),
)
