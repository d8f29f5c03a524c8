"""``accel-train collatz ...``: commands of this task alone."""

USAGE = """usage: accel-train collatz search [--start 2^71] [--count N] [--map 3n+1] [--negative] [--progress FILE]

  search    look for cycles over a range of numbers; a killed search goes on from its progress file"""

COMMANDS = {"search": "accel_train.tasks.collatz.search"}
"""Name -> module with ``main(argv) -> exit code``."""
