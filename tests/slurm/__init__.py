"""The launcher on a real SLURM cluster: several nodes on this machine, made and thrown away by the tests."""
