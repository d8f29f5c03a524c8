"""``accel-train collatz ...``: commands of this task alone."""

from accel_train.command import Command, by_name

COMMANDS = by_name(
    Command(
        "search",
        "look for cycles over a range of numbers; a killed search goes on from its progress file",
        "accel_train.tasks.collatz.search",
    ),
)
