"""Logs of a stage, by rank: python -m slurm.logs RUN [STAGE] [--rank N] [--follow]."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from magvit_scale.config import Refusal, refusals_end_the_program
from slurm.chain import Chain, arguments_of, open_chain
from slurm.follow import LogFollower
from slurm.stages import Stage, read_marker

SUMMARY = "Shows what a rank of a stage has written, all attempts in one; the newest stage where none is named."
POLL_INTERVAL_S = 0.5


def main(argv: Sequence[str] | None = None) -> None:
    """Shows both logs of the rank; with --follow until the stage is finished or Ctrl-C.

    Raises:
        Refusal: the stage was never started, or the rank has written none.
    """
    parser = arguments_of("slurm.logs", SUMMARY)
    parser.add_argument("stage", metavar="STAGE", nargs="?", help="name of a stage, of an array's element: NAME.3")
    parser.add_argument("--rank", type=int, default=0, help="process of the stage")
    parser.add_argument("--follow", action="store_true", help="go on until the stage is finished")
    options = parser.parse_args(argv)
    stage = _choose(open_chain(options.run), options.stage)
    if not (paths := paths_of(stage, options.rank)):
        raise Refusal(f"no logs of rank {options.rank} in {stage.logs}; see python -m slurm.status {stage.root}")
    follower = LogFollower(paths)
    while options.follow and not stage.is_finished:
        follower.copy()
        time.sleep(POLL_INTERVAL_S)
    follower.close()


def paths_of(stage: Stage, rank: int) -> list[Path]:
    """Stdout and stderr of a rank, of the newest job; none where it has written none."""
    job_id = read_marker(stage.started_marker)["job_id"] or "*"
    return sorted(stage.logs.glob(f"{job_id}_{rank}_log.*"), key=lambda path: path.stat().st_mtime)[-2:]


def _choose(chain: Chain, name: str | None) -> Stage:
    started = {stage.name: stage for stage in chain.started}
    if not started:
        raise Refusal(f"{chain.root}: no stage was started yet")
    if name is not None and name not in started:
        raise Refusal(f"stage {name} was not started; expected one of {', '.join(started)}")
    running = [stage for stage in started.values() if list(stage.logs.glob("*_log.*"))]
    return started[name] if name else (running or list(started.values()))[-1]


if __name__ == "__main__":
    with refusals_end_the_program("slurm.logs"):
        try:
            main()
        except KeyboardInterrupt:
            sys.exit(130)
