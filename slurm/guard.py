"""Ends all processes of a local job together, however one of them or the launcher comes to its end.

A process killed with SIGKILL cleans nothing up: its loader workers stay, and its peers wait for it in a collective for
ever. So each rank leads its own process group with a guard in it. The guard ends the group when the rank has died, or
when the launcher lets go of the stage's lifeline, an flock that the kernel releases when the launcher dies.
"""

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

POLL_INTERVAL_S = 0.2


class Lifeline:
    """The launcher's end: a locked file of one attempt at one stage, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"lifeline.{os.getpid()}.{time.time_ns()}"
        self._file = self.path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def dead_ranks(self) -> list[int]:
        """Ranks that died before they were done, the first to die first."""
        reports = sorted(self.path.parent.glob(f"{self.path.name}.*"), key=lambda path: path.stat().st_mtime_ns)
        return [int(path.suffix.removeprefix(".")) for path in reports]

    def release(self) -> None:
        """Ends every process of the job."""
        self._file.close()

    def remove(self) -> None:
        """Clears up after the job."""
        for path in [*self.path.parent.glob(f"{self.path.name}.*"), self.path]:
            path.unlink(missing_ok=True)


def main(lifeline: str, rank: int, rank_pid: int) -> None:
    """The rank's end: waits for the death of the rank, which it reports beside the lifeline, or of the launcher."""
    try:
        with open(lifeline) as handle:
            while os.getppid() == rank_pid and not _is_released(handle.fileno()):
                time.sleep(POLL_INTERVAL_S)
        if os.getppid() != rank_pid:
            Path(f"{lifeline}.{rank}").touch()
    finally:
        os.killpg(0, signal.SIGKILL)


def _is_released(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
