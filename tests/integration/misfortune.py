"""The `magvit` command, struck: `python -m tests.integration.misfortune KIND VALUE VERB [key=value ...]`.

KIND `killed_at_step`: SIGKILL when that step has been logged. `killed_in_checkpoint`: SIGKILL when the checkpoint of
that step is written but not yet renamed. `file_size`: no file may grow beyond so many bytes, as on a full disk.
"""

import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from magvit_scale import cli


def main() -> None:
    kind, value = sys.argv[1], int(sys.argv[2])
    {"killed_at_step": kill_at_step, "killed_in_checkpoint": kill_in_checkpoint, "file_size": limit_files}[kind](value)
    cli.main(sys.argv[3:])


def limit_files(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))


def kill_at_step(step: int) -> None:
    from magvit_scale.training.tracking import Tracker

    log = Tracker.scalars

    def scalars(self: Tracker, done: int, values: Any) -> None:
        log(self, done, values)
        _kill_if(done == step)

    Tracker.scalars = scalars  # type: ignore[method-assign, assignment]


def kill_in_checkpoint(step: int) -> None:
    from magvit_scale.training import checkpoint

    rename: Callable[..., None] = os.rename

    def struck(source: Any, target: Any) -> None:
        _kill_if(str(target).endswith(f"step_{step:08d}"))
        rename(source, target)

    checkpoint.os.rename = struck  # type: ignore[assignment]


def _kill_if(is_time: bool) -> None:
    if is_time:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
