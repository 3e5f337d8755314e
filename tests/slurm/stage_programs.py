"""A stage that does what its arguments say."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import slurm


def main(argv: Sequence[str] | None = None) -> None:
    options = dict(argument.split("=", 1) for argument in argv or [] if "=" in argument)
    if "dies" in options:
        os.kill(os.getpid(), signal.SIGKILL)
    if "dies_once" in options and not Path(options["dies_once"]).exists():
        Path(options["dies_once"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if "waits_for" in options:
        Path(f"{options['waits_for']}.{os.environ.get('SLURM_ARRAY_TASK_ID')}").touch()
        while not Path(options["waits_for"]).exists():
            time.sleep(0.1)
    if options.get("slow_rank") == os.environ["RANK"]:
        time.sleep(2)
        Path(f"{options['output']}.slow").touch()
    if "needs" in options and not Path(options["needs"]).exists():
        raise FileNotFoundError(options["needs"])
    files = [Path(argument) for argument in argv or [] if "=" not in argument]
    said = [str(Path(slurm.__file__).parent), os.environ.get("TOLD", ""), *(file.read_text() for file in files)]
    output = Path(options["output"])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(said))
