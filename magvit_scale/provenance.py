"""Where a figure was made: the state of the code and the machine. No torch."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGES = ("magvit_scale", "torch", "torchvision", "numpy", "einops")


def git_state(folder: Path = CHECKOUT) -> dict[str, str | bool | None]:
    """`commit` of a checkout, and whether it `is_modified`; both null where `folder` is the root of none (an installed
    package, a copy made for a job) or there is no git.
    """
    # The first line is the way up to the root, so it is empty at the root itself: no other project's commit is taken.
    head = _git(folder, "rev-parse", "--show-cdup", "HEAD")
    way_up, _, commit = (head or "?").partition("\n")
    if way_up or not commit:
        return {"commit": None, "is_modified": None}
    return {
        "commit": commit.strip(),
        "is_modified": bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
    }


def machine(device: str) -> dict[str, str]:
    """Host, system and the versions that decide what is computed.

    Args:
        device: on which it was computed, in words.
    """
    facts = {"host": platform.node(), "system": platform.platform(), "python": platform.python_version()}
    return facts | {"device": device} | {name: version_of(name) for name in PACKAGES}


def version_of(name: str) -> str:
    """Of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return answer.stdout
