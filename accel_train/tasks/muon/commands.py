"""``accel-train muon ...``: commands of this task alone."""

from accel_train.command import Command, by_name

COMMANDS = by_name(
    Command(
        "generate",
        "bundles for given primaries and depths, from a run's best model",
        "accel_train.tasks.muon.generate",
    ),
)
