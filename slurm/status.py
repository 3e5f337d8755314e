"""How the stages of a chain fare: python -m slurm.status RUN."""

import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import pairwise

from magvit_scale.config import refusals_end_the_program
from magvit_scale.progress import aligned
from slurm import progress, queue
from slurm.attempts import Event, read_ledger
from slurm.chain import arguments_of, open_chain
from slurm.follow import last_lines
from slurm.logs import paths_of
from slurm.queue import QueuedJob
from slurm.stages import Stage, read_marker, recorded_seconds

SUMMARY = "Shows every stage of a chain: its state, progress, restarts with their reasons, and the end of its log."
HEADER = ("stage", "job", "state", "step", "loss", "s/step", "left", "restarts", "where")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table, then what has gone wrong, then the ends of the logs of what runs or failed."""
    parser = arguments_of("slurm.status", SUMMARY)
    parser.add_argument("--lines", type=int, default=3, help="last lines of each log")
    options = parser.parse_args(argv)
    chain = open_chain(options.run)
    jobs = queue.ask(list(chain.jobs())) if chain.cluster == "slurm" else {}
    started = {stage.name: stage for stage in chain.started}
    rows: list[tuple[str, ...]] = [HEADER]
    for name in chain.names:
        rows.append(row(started[name], jobs) if name in started else (name, "", "not started", *[""] * 6))
    for line in aligned(rows):
        _say(line)
    for stage in started.values():
        for line in troubles(stage):
            _say(line)
        if not stage.is_finished and options.lines:
            _show_log(stage, options.lines)


def row(stage: Stage, jobs: dict[str, QueuedJob]) -> tuple[str, ...]:
    """The cells of a stage, as in HEADER."""
    job_id = read_marker(stage.started_marker)["job_id"] or ""
    job, now = jobs.get(job_id), progress.read(stage.calls)
    num_restarts = max(0, sum(event["event"] == "start" for event in read_ledger(stage)) - 1)
    step = f"{now.step}/{now.num_steps}" if now and now.num_steps else str(now.step) if now else ""
    left = "" if stage.is_finished or now is None or now.remaining_s is None else _clock(now.remaining_s)
    return (
        stage.name,
        job_id,
        _state(stage, job),
        step,
        f"{now.loss:.4g}" if now and now.loss is not None else "",
        f"{now.step_s:.3g}" if now and now.step_s else "",
        left,
        str(num_restarts or ""),
        (job.nodes if job and job.nodes else f"({job.reason})" if job and job.state == "PENDING" else ""),
    )


def _state(stage: Stage, job: QueuedJob | None) -> str:
    if stage.is_finished:
        return f"finished in {_clock(recorded_seconds(stage))}"
    if job is None:
        return "not finished"
    since = f" {job.elapsed} of {job.time_limit}" if job.state == "RUNNING" else ""
    return job.state.lower() + since


def troubles(stage: Stage) -> Iterator[str]:
    """A line for every end of a start that was not the stage's own."""
    for event, following in pairwise([*read_ledger(stage), {"event": "now"}]):
        if event["event"] == "end" and event["why"] != "finished":
            yield _trouble(stage, event, event["why"] + ("; started again" if event["goes_on"] else ""))
        elif event["event"] == following["event"] == "start":
            yield _trouble(stage, following, "started again by SLURM, its batch script had no time to say why")


def _trouble(stage: Stage, event: Event, why: str) -> str:
    when = time.strftime("%m-%d %H:%M:%S", time.localtime(event["time"]))
    return f"{stage.name}: {when} at {event['reached']}: {why}"


def _show_log(stage: Stage, num_lines: int) -> None:
    for path in paths_of(stage, rank=0):
        if lines := last_lines(path, num_lines):
            _say(f"== {path} ==")
            _say("\n".join(lines))


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    with refusals_end_the_program("slurm.status"):
        main()
