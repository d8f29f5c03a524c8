"""accel-train sherlock ...: commands of this task alone."""

from accel_train.command import Command, by_name

COMMANDS = by_name(
    Command(
        "preprocess",
        "NIfTI scans, movies, annotations and features to arrays with a row per TR, resumable and in parallel",
        "accel_train.tasks.sherlock.preprocess.command",
    ),
    Command(
        "report",
        "whether a run predicts brains: beside banded ridge, a ceiling and chance, with intervals: JSON and figures",
        "accel_train.tasks.sherlock.report.command",
    ),
    Command(
        "ensemble",
        "the predictions of several runs as one, each voxel with weights of its own",
        "accel_train.tasks.sherlock.report.ensemble",
    ),
)
