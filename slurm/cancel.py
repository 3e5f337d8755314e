"""Ends a chain cleanly: python -m slurm.cancel RUN. Waiting jobs leave the queue; running ones save first."""

import sys
import time
from collections.abc import Mapping, Sequence

from magvit_scale.config import Refusal, refusals_end_the_program
from slurm import queue
from slurm.chain import arguments_of, open_chain
from slurm.stages import Stage

SUMMARY = "Takes the waiting jobs of a chain out of the queue and asks the running ones to save and end."
POLL_INTERVAL_S, ASKED_AGAIN_S = 1.0, 30.0


def main(argv: Sequence[str] | None = None) -> None:
    """Returns when no job of the chain is left.

    Raises:
        Refusal: the chain does not run on SLURM.
    """
    parser = arguments_of("slurm.cancel", SUMMARY)
    parser.add_argument("--patience", type=float, default=600.0, help="seconds for saving; then scancel ends the jobs")
    options = parser.parse_args(argv)
    chain = open_chain(options.run)
    if chain.cluster != "slurm":
        raise Refusal(f"{options.run} runs on cluster={chain.cluster}; end its launcher with Ctrl-C")
    jobs = chain.jobs()
    for stage in jobs.values():
        if not stage.is_finished:
            stage.cancelled_marker.touch()  # so that no job starts again
    _end(jobs, options.patience)
    _say(f"no job is left; python -m slurm.resubmit {options.run} goes on")


def _end(jobs: Mapping[str, Stage], patience_s: float) -> None:
    """Cancels what waits, and what has begun to wait again; asks what runs, again if it was not ready to hear."""
    deadline, asked = time.monotonic() + patience_s, dict.fromkeys(jobs, float("-inf"))
    while living := [job for job in queue.ask(list(jobs)).values() if job.is_living]:
        now = time.monotonic()
        waiting = [job.job_id for job in living if job.state == "PENDING"]
        running = [job.job_id for job in living if job.state == "RUNNING" and now > asked[job.job_id] + ASKED_AGAIN_S]
        queue.cancel(waiting)
        queue.cancel(running, signal="TERM")
        for job_id in [job.job_id for job in living if job.job_id in {*waiting, *running}]:
            _say(f"{jobs[job_id].name:<24}job {job_id}  {'saves and ends' if job_id in running else 'cancelled'}")
        if now > deadline:
            _say(f"not ended after {patience_s:g} s: scancel")
            return queue.cancel([job.job_id for job in living])
        asked |= dict.fromkeys(running, now)
        time.sleep(POLL_INTERVAL_S)
    return None


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with refusals_end_the_program("slurm.cancel"):
        main()
