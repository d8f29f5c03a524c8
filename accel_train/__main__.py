import sys

from accel_train.cli import main

sys.exit(main())
