"""How close to the machine: every figure beside its floor, which the same run measures."""
