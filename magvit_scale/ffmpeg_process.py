"""One ffmpeg process: which program, and how its word on damage is told from an interruption. No torch."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from typing import IO

import imageio_ffmpeg

# Damage is told on stderr only: ffmpeg exits 0 on a truncated file or flipped bits.
_TROUBLE = re.compile(r"\[(?:error|fatal|panic)\] (.*)")
# Symbols that carry no reason of their own; the line before them does.
_CONSEQUENCES = ("Error opening", "Error submitting", "Conversion failed", "Nothing was written")
# Signals that say nothing about the video; a decoder that crashes on it (SIGSEGV, SIGABRT) does.
_INTERRUPTIONS = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGXCPU, signal.SIGXFSZ)
_INTERRUPTED_STATUS = 255  # of an ffmpeg that caught the signal; also -EPERM, which it explains


class VideoError(ValueError):
    """A video that cannot be read, in a few words."""


@cache
def ffmpeg_version() -> str:
    """What `ffmpeg_executable` calls itself; the bytes of an mp4 hang on it."""
    return _first_line(ffmpeg_executable()).split(" Copyright")[0]


@cache
def ffmpeg_executable() -> str:
    """The system's ffmpeg, or the one that imageio-ffmpeg brings where there is none or it is older than 5.1."""
    system = shutil.which("ffmpeg")
    return system if system and _knows_fps_mode(system) else imageio_ffmpeg.get_ffmpeg_exe()


def _knows_fps_mode(executable: str) -> bool:
    number = re.match(r"ffmpeg version n?(\d+)\.(\d+)", _first_line(executable))
    # A build from git has no such number, and is newer.
    return number is None or (int(number[1]), int(number[2])) >= (5, 1)


def _first_line(executable: str) -> str:
    version = subprocess.run([executable, "-version"], capture_output=True, text=True, check=False).stdout
    return version.split("\n", 1)[0]


def run_ffmpeg(
    arguments: Sequence[str], *, files: Mapping[str, str], pixels: bytes | None = None, pass_fds: Sequence[int] = ()
) -> tuple[bytes, str]:
    """Runs ffmpeg.

    Args:
        arguments: of ffmpeg_arguments.
        files: names of files, by the arguments that stand for them.
        pixels: for its standard input.
        pass_fds: open files that it may use.

    Returns:
        what it wrote on standard output, and its log.

    Raises:
        VideoError: it told any damage, or failed, or crashed.
        OSError: it was interrupted.
    """
    # `file:` takes the meaning from '-', ':' and '%' in a name.
    command = [ffmpeg_executable(), *(f"file:{files[word]}" if word in files else word for word in arguments)]
    # Not through pipes, which wake this process at every line.
    with file_in_memory() as stdout, file_in_memory() as stderr:
        ended = subprocess.run(command, input=pixels, stdout=stdout, stderr=stderr, check=False, pass_fds=pass_fds)
        found, log = (_written(file) for file in (stdout, stderr))
    words = log.decode(errors="replace")
    _refuse_interruption(ended.returncode, words)
    reason = _reason(words)
    if reason or ended.returncode:
        raise VideoError(reason or f"ffmpeg failed with status {ended.returncode}")
    return found, words


def file_in_memory() -> IO[bytes]:
    """An empty file that has no name and is gone when it is closed."""
    return open(os.memfd_create("ffmpeg"), "w+b")


def _written(file: IO[bytes]) -> bytes:
    file.seek(0)  # the process moved the place that it shares with this one
    return file.read()


def _refuse_interruption(status: int, log: str) -> None:
    is_caught = status == _INTERRUPTED_STATUS and "Operation not permitted" not in log
    if is_caught or -status in _INTERRUPTIONS:
        name = "a signal" if is_caught else signal.Signals(-status).name
        raise ChildProcessError(f"ffmpeg was ended by {name}; run again to continue")


def _reason(log: str) -> str:
    if "matches no streams" in log:
        return "no video stream"
    lines = [found[1].strip() for found in map(_TROUBLE.search, log.splitlines()) if found]
    causes = [line for line in lines if not line.startswith(_CONSEQUENCES)]
    return next(iter(causes or lines), "")[:200]
