"""accel-train tcn ...: commands of this task alone."""

from accel_train.command import Command, by_name

COMMANDS = by_name(
    Command(
        "preprocess",
        "HDF5 shots to memory-mapped arrays, resumable and in parallel",
        "accel_train.tasks.tcn.preprocess.command",
    ),
    Command(
        "report",
        "whether the alarms of a run work: shots, warning times, trivial models, failing sensors; JSON and figures",
        "accel_train.tasks.tcn.report.command",
    ),
)
