"""A copy of code and configuration files in the run folder: what a queued job runs, whatever is edited later."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from magvit_scale.config import is_override
from slurm.stages import Call, Stage

CHECKOUT = Path(__file__).resolve().parents[1]
COPIED = ("magvit_scale", "data_prep", "slurm", "configs")
UNWANTED = ("__pycache__",)


def path_of(folder: Path) -> Path:
    """Where `take` puts the copy: `folder/HASH`, named by the content, so that starts with the same code share it."""
    return (folder / _hash()[:12]).absolute()


def take(folder: Path) -> Path:
    """Copies the checkout's programs and configurations aside, renames the copy to `path_of(folder)`; returns that."""
    target = path_of(folder)
    if not target.exists():
        # Of a launcher that was killed a part may be there; the lock of the run folder lets in one at a time.
        aside = folder / f"{target.name}.tmp"
        shutil.rmtree(aside, ignore_errors=True)
        for name in COPIED:
            shutil.copytree(CHECKOUT / name, aside / name, ignore=shutil.ignore_patterns(*UNWANTED))
        os.replace(aside, target)
    return target


def preserve(stage: Stage, folder: Path) -> Stage:
    """The stage with copies of its programs' configuration files, in `folder`, in their places."""
    return replace(stage, calls=tuple(_with_copies(call, folder) for call in stage.calls))


def _with_copies(call: Call, folder: Path) -> Call:
    return replace(call, argv=tuple(_copy(argument, folder) for argument in call.argv))


def _copy(argument: str, folder: Path) -> str:
    if is_override(argument):
        return argument
    content = Path(argument).read_bytes()
    target = folder / f"{hashlib.sha256(content).hexdigest()[:12]}_{Path(argument).name}"
    folder.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f"{target.name}.{os.getpid()}")
    aside.write_bytes(content)
    os.replace(aside, target)
    return str(target.absolute())


def _hash() -> str:
    digest = hashlib.sha256()
    for path in _files():
        digest.update(f"{path.relative_to(CHECKOUT)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _files() -> Iterator[Path]:
    for name in COPIED:
        for path in sorted((CHECKOUT / name).rglob("*")):
            if path.is_file() and not set(UNWANTED) & set(path.parts):
                yield path
