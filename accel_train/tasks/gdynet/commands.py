"""``accel-train gdynet ...``: commands of this task alone."""

from accel_train.command import Command, by_name

COMMANDS = by_name(
    Command(
        "preprocess",
        "a trajectory of molecular dynamics to a folder of neighbour lists, resumable and in parallel",
        "accel_train.tasks.gdynet.preprocess.command",
    ),
    Command(
        "analyze",
        "predictions of a run to states, timescales, a Chapman-Kolmogorov test: JSON and figures",
        "accel_train.tasks.gdynet.analysis.command",
    ),
    Command(
        "convert",
        "a config of the GDyNet-ferro trainer to one of ours, saying what it changed",
        "accel_train.tasks.gdynet.convert",
    ),
)
