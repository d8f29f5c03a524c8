"""``accel-train muon ...``: commands of this task alone."""

USAGE = """usage: accel-train muon generate RUN --conditions FILES --out DIR [--counts_mode predict|column|constant] ...

  generate    bundles for given primaries and depths, from a run's best model; --help tells more"""

COMMANDS = {"generate": "accel_train.tasks.muon.generate"}
"""Name -> module with ``main(argv) -> exit code``."""
