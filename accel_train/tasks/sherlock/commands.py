"""accel-train sherlock ...: commands of this task alone."""

from accel_train.command import Command, by_name

COMMANDS = by_name(
    Command(
        "preprocess",
        "NIfTI scans, movies, annotations and features to arrays with a row per TR, resumable and in parallel",
        "accel_train.tasks.sherlock.preprocess.command",
    ),
)
