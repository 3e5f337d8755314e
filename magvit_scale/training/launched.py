"""Who this process is among its ranks, as the program that has started it says. Knows no torch."""

import os
import socket
import subprocess

ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
"""Of a lone process; nobody listens at the address."""
FIRST_PORT, NUM_PORTS = 20_000, 6_000
"""Below the ports that systems give out by themselves."""


def complete_environment() -> None:
    """Sets the five variables that torch.distributed and DeepSpeed read, unless torchrun, the deepspeed launcher or
    slurm/job.py have: those of srun's task, or of a lone process.
    """
    if "RANK" not in os.environ:
        for name, value in (_environment_of_srun() or ALONE).items():
            os.environ.setdefault(name, value)


def node_name() -> str:
    """This machine's name: as SLURM writes it where SLURM has started us, which its own may not be."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def hostnames(node_list: str) -> list[str]:
    """The nodes of `node[1-2,7]`, as SLURM counts them."""
    command = ["scontrol", "show", "hostnames", node_list]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def port_of(job_id: int, start: int) -> int:
    """Where the ranks of a job meet: a port that differs from one start to the next, and between jobs side by side."""
    return FIRST_PORT + (job_id * 7919 + start) % NUM_PORTS


def _environment_of_srun() -> dict[str, str] | None:
    names = ("JOB_ID", "STEP_ID", "STEP_NODELIST", "PROCID", "LOCALID", "NTASKS")
    step = {name: os.environ[f"SLURM_{name}"] for name in names if f"SLURM_{name}" in os.environ}
    # A batch script has tasks to come, and no step yet.
    if len(step) < len(names) or step["NTASKS"] == "1":
        return None
    first, *_ = hostnames(step["STEP_NODELIST"])
    start = int(os.environ.get("SLURM_RESTART_COUNT", "0")) + int(step["STEP_ID"])
    return {
        "RANK": step["PROCID"],
        "LOCAL_RANK": step["LOCALID"],
        "WORLD_SIZE": step["NTASKS"],
        "MASTER_ADDR": first,
        "MASTER_PORT": str(port_of(int(step["JOB_ID"]), start)),
    }
