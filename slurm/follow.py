"""Shows the log of a running job: progress lines redrawn in place on a terminal, plain lines elsewhere."""

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

PROGRESS = "%|"
LAUNCHER_NOISE = re.compile(r"submitit (INFO|WARNING|ERROR) \(")
ERASE_LINE = "\r\x1b[2K"
NUM_LAST_LINES = 15


class LogFollower:
    """Copies what is appended to some log files, whole lines only."""

    def __init__(self, paths: list[Path], output: TextIO | None = None) -> None:
        self._rest = dict.fromkeys(paths, b"")
        self._position = dict.fromkeys(paths, 0)
        self._output = output or sys.stdout
        self._is_on_progress_line = False

    def copy(self) -> None:
        """Shows the lines written since the last call."""
        for path in self._position:
            for line in self._new_lines(path):
                if not LAUNCHER_NOISE.match(line):
                    self._show(line)
        self._output.flush()

    def close(self) -> None:
        """Shows the last lines and leaves the cursor at the start of a line."""
        self.copy()
        self._end_progress_line()
        self._output.flush()

    def _new_lines(self, path: Path) -> list[str]:
        if not path.exists():
            return []
        with path.open("rb") as log:
            log.seek(self._position[path])
            text = self._rest[path] + log.read()
            self._position[path] = log.tell()
        *lines, self._rest[path] = text.split(b"\n")
        return [line.decode(errors="replace").rstrip("\r") for line in lines]

    def _show(self, line: str) -> None:
        if PROGRESS in line and self._output.isatty():
            width = shutil.get_terminal_size().columns - 1
            self._output.write(f"{ERASE_LINE}{line[:width]}")
            self._is_on_progress_line = True
            return
        self._end_progress_line()
        self._output.write(f"{line}\n")

    def _end_progress_line(self) -> None:
        if self._is_on_progress_line:
            self._output.write("\n")
        self._is_on_progress_line = False


def explain_failure(programs: Sequence[str], out: Path, err: Path) -> tuple[str, list[str]]:
    """Why a process ended, from its logs.

    Returns:
        A program's one-line refusal or, without one, the last line of stderr; and the last lines of both logs.
    """
    errors, output = _meaningful_lines(err), _meaningful_lines(out)
    refusals = [line for line in errors if line.startswith(tuple(f"{program}: " for program in programs))]
    reason = (refusals or errors or ["it ended without a message (killed, or out of memory?)"])[-1]
    return reason, [*output[-NUM_LAST_LINES:], *errors[-NUM_LAST_LINES:]]


def last_lines(path: Path, num_lines: int) -> list[str]:
    """The end of a log, without progress bars and the launcher's own lines."""
    return _meaningful_lines(path)[-num_lines:]


def _meaningful_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").splitlines()
    return [line for line in lines if line.strip() and PROGRESS not in line and not LAUNCHER_NOISE.match(line)]
