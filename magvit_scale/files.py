"""Files that appear whole or not at all: text, JSON and tars, written aside, flushed to the disk, renamed. No torch.

The tars are what WebDataset's own writer makes, with the standard library: importing webdataset imports torch.
"""

import fcntl
import glob
import hashlib
import io
import json
import os
import socket
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from magvit_scale.config import Refusal

Item = TypeVar("Item")


@contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes its name when the block ends well; folders are made.

    Until then it is one of this process alone, since a launch beside this one may be writing the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    for left in path.parent.glob(f"{glob.escape(path.name)}.{host}-*.tmp"):
        if not is_running(left.name.removesuffix(".tmp").rpartition("-")[2]):
            left.unlink(missing_ok=True)
    aside = path.with_name(f"{path.name}.{host}-{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def only_process(lock: Path, refusal: str) -> Iterator[None]:
    """Holds a lock file that the system opens when this process dies; folders are made.

    Raises:
        Refusal: with these words where another process holds it; or the file system knows no locks.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refusal(refusal) from error
        except OSError as error:
            raise Refusal(f"{lock}: found no locks there ({error.strerror}); give a folder on another disk") from error
        yield


def is_running(process: str) -> bool:
    """Whether this machine has a process of this number; False for what is no number."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text."""
    with written_aside(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes JSON with one item per line."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_npz(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Writes a compressed npz of plain arrays."""
    with written_aside(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


@contextmanager
def tar_written_aside(path: Path) -> Iterator[Callable[[str, bytes], int]]:
    """A tar whose bytes follow from its members alone; the block calls `add(name, data)` for each, which returns
    where its data begin.
    """
    with written_aside(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, data: bytes) -> int:
            member, start = tarfile.TarInfo(name), tar.offset + tarfile.BLOCKSIZE
            member.size, member.mode = len(data), 0o444
            tar.addfile(member, io.BytesIO(data))
            return start

        yield add


def npy_bytes(array: NDArray[Any]) -> bytes:
    """The array as the bytes of a .npy file; its values are the last `array.nbytes` of them."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def in_own_order(items: Sequence[Item]) -> list[Item]:
    """The items from another one on for every launch side by side, so that each finds what the others have made.

    Elements of a SLURM job array begin evenly spread; other launches wherever their process number falls.
    """
    if not items:
        return []
    if "SLURM_ARRAY_TASK_COUNT" in os.environ:
        first, count, own = (int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("MIN", "COUNT", "ID"))
        start = (own - first) * len(items) // count
    else:
        start = os.getpid() % len(items)
    return [*items[start:], *items[:start]]


def sha256(path: Path) -> str:
    """Hexadecimal checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
