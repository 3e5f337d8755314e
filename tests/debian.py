"""Programs of Debian's that tests need, installed where that is allowed: root on Debian."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
"""Some programs lie in folders that only root has in its PATH, and not always root."""
INSTALL = ["apt-get", "install", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]
NO_SERVICES = Path("/usr/sbin/policy-rc.d")


def is_root_on_debian() -> bool:
    """Whether this process may install packages."""
    return os.geteuid() == 0 and Path("/etc/debian_version").exists()


def install(package_of: Mapping[str, str]) -> None:
    """Installs the packages of programs that are missing; no service starts.

    Raises:
        RuntimeError: a program is missing and this is not root on Debian, or apt-get failed.
    """
    missing = sorted({package for program, package in package_of.items() if not _is_there(program)})
    if not missing:
        return
    if not is_root_on_debian():
        raise RuntimeError(f"found no {', '.join(missing)}, and only root on Debian can install them; do so by hand")
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
