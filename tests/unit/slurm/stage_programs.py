"""Tiny programs that the launcher's tests run as stages; arguments are key=value."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from magvit_scale.config import Refusal


def main(argv: Sequence[str] | None = None) -> None:
    options = dict(argument.split("=", 1) for argument in argv or [] if "=" in argument)
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    output = Path(options["output"].strip('"'))
    output.mkdir(parents=True, exist_ok=True)
    with (output / f"runs.{rank}").open("a") as runs:
        runs.write(f"{size}\n")
    (output / f"pid.{rank}").write_text(str(os.getpid()))
    print(f"hello from rank {rank} of {size}", flush=True)  # noqa: T201
    if options.get("refuse_rank") == rank:
        raise Refusal("found 0 videos, expected 2; give another folder")
    if "needs" in options and not Path(options["needs"]).exists():
        raise Refusal(f"{options['needs']} is missing")
    if options.get("slow_rank") == rank:
        time.sleep(0.5)
    if options.get("kill_rank") == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    if "wait_for" in options:
        worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (output / f"pids.{rank}").write_text(f"{os.getpid()} {worker.pid}")
        while not Path(options["wait_for"]).exists():
            time.sleep(0.05)
        worker.kill()
    (output / f"result.{rank}").write_text(options.get("text", "made"))
    if "end_with" in options:
        raise SystemExit({"none": None, "zero": 0}[options["end_with"]])
