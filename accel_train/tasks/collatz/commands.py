"""``accel-train collatz ...``: commands of this task alone."""

from __future__ import annotations

from accel_train.errors import UserError

USAGE = """usage: accel-train collatz search [--start 2^71] [--count N] [--map 3n+1] [--negative] [--progress FILE]

  search    look for cycles over a range of numbers; a killed search goes on from its progress file"""


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv[0] != "search":
        raise UserError(f"collatz: unknown command {argv[0]!r}; there is: search")
    from accel_train.tasks.collatz.search import main as search

    return search(argv[1:])
