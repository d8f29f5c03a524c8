"""``accel_train`` as a program that takes a silent machine for dead after some seconds, not after 90."""

import sys

from accel_train.cli import main
from accel_train.run import late, lock
from accel_train.system import connections

SILENCE_S = 6

lock.BEAT_S, lock.SILENCE_S, connections.SILENCE_S, connections.BETWEEN_S = 1.0, SILENCE_S, SILENCE_S, 2
late.PATIENCE_S = 6.0

if __name__ == "__main__":
    sys.exit(main())
