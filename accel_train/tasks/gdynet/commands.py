"""``accel-train gdynet ...``: commands of this task alone."""

USAGE = """usage: accel-train gdynet COMMAND ... (--help tells more)

  preprocess  a LAMMPS dump, extxyz, DCD or .npz trajectory to a folder of neighbour lists, resumable and in parallel
  analyze     predictions of a run to states, timescales, a Chapman-Kolmogorov test: JSON and figures
  convert     a config of the known trainer to one of ours, saying what it changed"""

COMMANDS = {
    "preprocess": "accel_train.tasks.gdynet.preprocess.command",
    "analyze": "accel_train.tasks.gdynet.analysis.command",
    "convert": "accel_train.tasks.gdynet.convert",
}
"""Name -> module with ``main(argv) -> exit code``."""
