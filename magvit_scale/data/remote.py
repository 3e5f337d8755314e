"""Remote shards: whole files fetched ahead into a bounded local cache that any number of processes share. No torch.

A file appears under its name only after its size and sha256 have been checked, so a reader never sees a wrong byte.
http and https are read with the standard library, everything else (s3, gs, ...) with fsspec.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from magvit_scale.config import Refusal
from magvit_scale.download import WORTH_A_RETRY, blocks

Result = TypeVar("Result")

CACHE_VARIABLE = "MAGVIT_CACHE"
DEFAULT_CACHE = "~/.cache/magvit_scale"
NUM_ATTEMPTS = 5
FIRST_PAUSE_S = 0.5
"""Before the second attempt; twice as long before each further one."""
STALLED_AFTER_S = 30.0


def cache_folder(cache: str | None) -> Path:
    """The folder given, or that of the environment variable MAGVIT_CACHE, or ~/.cache/magvit_scale."""
    return Path(cache or os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE).expanduser()


def is_remote(folder: str | Path) -> bool:
    """Whether a folder is given by URL."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(folder)) is not None


class RemoteFolder:
    """A folder behind a URL and its copy in the cache; files are named by their paths in the copy."""

    def __init__(self, url: str, cache: str | None, cache_gb: float) -> None:
        self.url, self.root = url.rstrip("/"), cache_folder(cache) / "remote"
        self.folder = self._folder_of("")
        self.max_bytes = int(cache_gb * 10**9)
        self._expected: dict[Path, tuple[int, str]] = {}
        self._wanted: list[Path] = []
        self._fetcher: threading.Thread | None = None

    def expect(self, files: Mapping[Path, tuple[int, str]]) -> None:
        """Tells sizes and checksums of files to come."""
        self._expected.update(files)

    def take_version(self, content_hash: str) -> None:
        """Moves on to the copy of this content: files of the same name may have been written again."""
        self.folder = self._folder_of(content_hash)

    def _folder_of(self, content_hash: str) -> Path:
        return self.root / hashlib.sha256(f"{self.url} {content_hash}".encode()).hexdigest()[:16]

    def refuse_small_cache(self, num_shards: int) -> None:
        """Checks that the cache holds what is in use at a time.

        Raises:
            Refusal: it does not.
        """
        largest = max((size for size, _ in self._expected.values()), default=0)
        if (needed := largest * num_shards) > self.max_bytes:
            raise Refusal(
                f"clips.cache_gb={self.max_bytes / 1e9:g}: {num_shards} shards of up to {largest} bytes are in use at a"
                f" time; give at least {needed / 1e9:.3g}, or a smaller clips.shuffle_window"
            )

    def fetch(self, path: Path, *, is_fresh: bool = False) -> None:
        """Brings one file here, unless it is.

        Args:
            path: in the copy.
            is_fresh: asks the server even where a copy is here.

        Raises:
            Refusal: it cannot be had, or is not what was expected after several attempts.
        """
        if path.exists() and not is_fresh:
            return
        name = hashlib.sha256(str(path.relative_to(self.folder)).encode()).hexdigest()[:16]
        with _locked(self.folder / "locks" / name):
            if is_fresh or not path.exists():
                self._fetch_with_retries(path)

    def reading(self, path: Path, read: Callable[[], Result]) -> Result:
        """The result of `read`, which opens `path`; another process may evict the file between fetch and open.

        Raises:
            Refusal: see `fetch`, or the cache is too small for the processes that share it.
        """
        for _ in range(NUM_ATTEMPTS):
            self.fetch(path)
            try:
                result = read()
                os.utime(path)
            except FileNotFoundError:
                continue
            return result
        raise Refusal(f"{path}: evicted again and again; clips.cache_gb is too small for the processes that share it")

    def fetch_ahead(self, paths: Sequence[Path]) -> None:
        """Fetches files in a thread, in this order; a later call replaces what has not begun."""
        self._wanted = list(paths)
        if self._fetcher is None or not self._fetcher.is_alive():
            self._fetcher = threading.Thread(target=self._fetch_wanted, daemon=True)
            self._fetcher.start()

    def _fetch_wanted(self) -> None:
        # What fails here is fetched again, and then told, by the reader that needs it.
        with contextlib.suppress(Refusal, OSError):
            while self._wanted:
                self.fetch(self._wanted.pop(0))

    def _fetch_with_retries(self, path: Path) -> None:
        url = f"{self.url}/{path.relative_to(self.folder)}"
        for attempt in range(NUM_ATTEMPTS):
            try:
                return self._download(url, path)
            except (OSError, HTTPException, EOFError) as error:
                reason = str(error) if isinstance(error, _DamageError) else f"{type(error).__name__}: {error}"
            if attempt + 1 < NUM_ATTEMPTS:
                time.sleep(FIRST_PAUSE_S * 2**attempt)
        raise Refusal(f"{url}: {reason}, {NUM_ATTEMPTS} times; check the server and run again")

    def _download(self, url: str, path: Path) -> None:
        """Fetches one file aside, checks it, and gives it its name."""
        num_bytes, checksum = self._expected.get(path, (None, ""))
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".tmp")
        self._make_room(aside, num_bytes or 0)
        digest, found = hashlib.sha256(), 0
        with closing(_opened(url)) as source, aside.open("r+b") as file:
            # A closed connection looks like the end of the file.
            if num_bytes is None and (told := getattr(source, "headers", {}).get("Content-Length")):
                num_bytes = int(told)
            for block in blocks(source, STALLED_AFTER_S):
                found += len(block)
                if num_bytes is not None and found > num_bytes:
                    break
                digest.update(block)
                file.write(block)
        if num_bytes is not None and found != num_bytes:
            raise _DamageError(f"{found} bytes, expected {num_bytes}")
        if checksum and digest.hexdigest() != checksum:
            raise _DamageError(f"sha256 {digest.hexdigest()}, expected {checksum}")
        os.truncate(aside, found)
        os.replace(aside, path)

    def _make_room(self, aside: Path, num_bytes: int) -> None:
        """Claims the disk for a file that is to come, at the cost of those that were not used for longest."""
        with _locked(self.root / "evict.lock"):
            aside.unlink(missing_ok=True)
            files = []
            for path in self.root.glob("*/*/*.tar*"):
                with contextlib.suppress(FileNotFoundError):
                    files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            excess = sum(size for _, size, _ in files) + num_bytes - self.max_bytes
            for _, size, path in sorted(files):
                if excess > 0:
                    path.unlink(missing_ok=True)
                    excess -= size
            aside.touch()
            os.truncate(aside, num_bytes)


class _DamageError(OSError):
    """A file that arrived, but not as it was written."""


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process and one thread at a time; the system opens the lock of a process that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _opened(url: str) -> Any:
    """A readable binary file behind a URL.

    Raises:
        Refusal: it is not there, may not be read, or has a protocol that is not installed: asking again is no use.
    """
    try:
        if url.startswith(("http://", "https://")):
            return urllib.request.urlopen(url, timeout=STALLED_AFTER_S)
        return fsspec.open(url, "rb").open()
    except (FileNotFoundError, PermissionError, ImportError, ValueError) as error:
        raise Refusal(f"{url}: {type(error).__name__}: {error}; expected a file of data_prep.write_shards") from error
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code in WORTH_A_RETRY:
            raise
        raise Refusal(f"{url}: {error}; expected a file of data_prep.write_shards") from error
