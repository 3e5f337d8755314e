"""What every test shares."""

import os

# Two threads per operation on two busy cores only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
