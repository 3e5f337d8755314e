"""What a job's batch script asks before and after each start of a stage: may it start, and does it start again?

    python -m slurm.attempts begin FOLDER STAGE NODE...
    python -m slurm.attempts end FOLDER STAGE STATUS STATE

The batch script outlives its ranks, whatever ends them; only the death of its own node, or SLURM's own decision, comes
before it. So a job goes on by one road after a time limit, a preemption, a killed rank or a lost node: `scontrol
requeue`. The ledger `STAGE.attempts.jsonl` holds every start and end with its reason.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from magvit_scale.config import Refusal, refusals_end_the_program
from magvit_scale.files import write_json
from magvit_scale.training.heartbeat import LOST_STATUS
from magvit_scale.training.signals import STOPPED_STATUS
from slurm.job import attempt, forget_ranks, read_notes
from slurm.preflight import UNFIT_STATUS, unfit_nodes
from slurm.progress import measure
from slurm.stages import Stage, load_stage

Event = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Ends with 0 where the job may start, or starts again; prints the nodes that the next start should leave out."""
    os.chdir(os.environ.get("SLURM_SUBMIT_DIR", "."))  # for which the stage's arguments hold
    verb, folder, name, *rest = sys.argv[1:] if argv is None else argv
    stage = load_stage(Path(folder), name)
    if verb == "begin":
        begin(stage, rest)
    else:
        raise SystemExit(end(stage, int(rest[0]), rest[1]))


def begin(stage: Stage, nodes: Sequence[str]) -> None:
    """Notes a start.

    Raises:
        Refusal: the stage was cancelled, or the last starts of this job have brought it no further.
    """
    if stage.cancelled_marker.exists():
        raise Refusal(f"stage {stage.name} was cancelled; python -m slurm.resubmit {stage.root} takes it up again")
    reached, job = measure(stage.argv), os.environ.get("SLURM_JOB_ID")
    starts = [event for event in read_ledger(stage) if event["event"] == "start" and event["job"] == job]
    num_fruitless = sum(event["reached"] == reached for event in starts)
    if num_fruitless > (limit := stage.resources.max_fruitless_restarts or 0):
        raise Refusal(
            f"stage {stage.name}: {num_fruitless} starts have ended at {reached}, expected progress after {limit} "
            f"restarts; see python -m slurm.status {stage.root}, then python -m slurm.resubmit {stage.root}"
        )
    forget_ranks(stage)
    # The launcher may have been killed before it could.
    write_json(stage.started_marker, stage.record(job_id=_own_id()))
    _note(stage, {"event": "start", "nodes": list(nodes), "reached": reached})


def end(stage: Stage, status: int, state: str) -> int:
    """Notes an end.

    Args:
        stage: that has ended.
        status: of srun: the highest of its tasks'.
        state: of the job, of which only RUNNING leaves the decision to us.

    Returns:
        0 where the job is to be requeued, 1 otherwise.
    """
    starts = [event for event in read_ledger(stage) if event["event"] == "start"]
    nodes: list[str] = starts[-1]["nodes"] if starts else []
    unfit = unfit_nodes(stage, attempt(), nodes)
    goes_on, why = decide(stage, status, state, unfit)
    _note(stage, {"event": "end", "status": status, "goes_on": goes_on, "why": why, "reached": measure(stage.argv)})
    if stage.is_finished:
        forget_ranks(stage)
    sys.stderr.write(f"slurm: stage {stage.name}: {why}; {'requeued' if goes_on else 'not requeued'}\n")
    if goes_on and unfit and status == UNFIT_STATUS:
        sys.stdout.write(",".join(filter(None, [stage.resources.exclude, *unfit])) + "\n")
    return 0 if goes_on else 1


def decide(stage: Stage, status: int, state: str, unfit: Sequence[str]) -> tuple[bool, str]:
    """Whether a job goes on after this end, and why it has ended, in words."""
    notes = read_notes(stage, attempt())
    failed = {rank: note for rank, note in notes.items() if note["status"] not in (0, STOPPED_STATUS, LOST_STATUS)}
    if stage.is_finished:
        return False, "finished"
    if stage.cancelled_marker.exists():
        return False, "cancelled"
    if state != "RUNNING":
        return False, f"ended by SLURM (node failure, requeue or scancel), job {state}"
    if any(note["status"] == UNFIT_STATUS for note in failed.values()):
        exclude = bool(unfit) and bool(stage.resources.exclude_bad_nodes)
        return exclude, f"preflight found {', '.join(unfit) or 'every node'} unfit"
    if failed:
        rank, note = min(failed.items())
        return False, f"rank {rank} on {note['host']} failed: {note['why'] or note['status']}"
    if any(note["status"] == STOPPED_STATUS for note in notes.values()):
        return True, "asked to stop (time limit, preemption or signal)"
    return True, f"a rank or node was lost (srun ended with {status})"


def read_ledger(stage: Stage) -> list[Event]:
    """All starts and ends of a stage, the first first; without a line that a power failure has cut."""
    events = []
    for line in stage.ledger.read_text().splitlines() if stage.ledger.exists() else ():
        with suppress(ValueError):
            events.append(json.loads(line))
    return events


def _own_id() -> str | None:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")


def _note(stage: Stage, event: Event) -> None:
    whole = event | {"job": os.environ.get("SLURM_JOB_ID"), "attempt": attempt(), "time": round(time.time(), 1)}
    with stage.ledger.open("a") as ledger:
        ledger.write(f"\n{json.dumps(whole)}")  # a line of its own even after one that was cut


if __name__ == "__main__":
    with refusals_end_the_program("slurm.attempts"):
        main()
