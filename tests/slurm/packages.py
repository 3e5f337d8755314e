"""Debian's packages of which the cluster is made."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
"""The daemons lie in folders that only root has in its PATH, and not always root."""
PACKAGE_OF = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "tini": "tini",
    "hostname": "hostname",
    "mount": "mount",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
INSTALL = ["apt-get", "install", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]
NO_SERVICES = Path("/usr/sbin/policy-rc.d")


def install() -> None:
    """Installs what is missing; no service starts.

    Raises:
        RuntimeError: this is not Debian, we are not root, or apt-get failed.
    """
    missing = sorted({package for program, package in PACKAGE_OF.items() if not _is_there(program)})
    if os.geteuid() != 0 or not Path("/etc/debian_version").exists():
        raise RuntimeError("the SLURM tests found no root on Debian; a cluster needs name spaces and Debian's packages")
    if not missing:
        return
    with _no_service_starts():
        if _apt([*INSTALL, *missing]).returncode:
            _apt(["apt-get", "update"])
            answer = _apt([*INSTALL, *missing])
            if answer.returncode:
                raise RuntimeError(f"apt-get could not install {missing}:\n{answer.stdout[-2000:]}")


def _is_there(program: str) -> bool:
    return shutil.which(program, path=SEARCH_PATH) is not None


def _apt(command: list[str]) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "PATH": SEARCH_PATH}
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Debian asks this program before a package starts its service; one that is there already is the machine's own."""
    if NO_SERVICES.exists():
        yield
        return
    NO_SERVICES.write_text("#!/bin/sh\nexit 101\n")
    NO_SERVICES.chmod(0o755)
    try:
        yield
    finally:
        NO_SERVICES.unlink()
