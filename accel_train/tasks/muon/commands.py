"""``accel-train muon ...``: commands of this task alone."""

from __future__ import annotations

from accel_train.errors import UserError

USAGE = """usage: accel-train muon generate RUN --conditions FILES --out DIR [--counts_mode predict|column|constant] ...

  generate    bundles for given primaries and depths, from a run's best model; --help tells more"""


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv[0] != "generate":
        raise UserError(f"muon: unknown command {argv[0]!r}; there is: generate")
    from accel_train.tasks.muon.generate import main as generate

    return generate(argv[1:])
