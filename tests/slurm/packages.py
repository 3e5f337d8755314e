"""Debian's packages of which the cluster is made."""

from tests import debian

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


def install() -> None:
    """Installs what is missing; no service starts.

    Raises:
        RuntimeError: this is not Debian, we are not root, or apt-get failed.
    """
    if not debian.is_root_on_debian():
        raise RuntimeError("the SLURM tests found no root on Debian; a cluster needs name spaces and Debian's packages")
    debian.install(PACKAGE_OF)
