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
from collections.abc import Mapping, Sequence
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
Note = dict[str, Any]
FINISHED_STATUS = 3
"""What the batch script is told of a stage of which nothing is left to do."""


def main(argv: Sequence[str] | None = None) -> None:
    """Ends with 0 where the job may start, or starts again, with FINISHED_STATUS where nothing is left to do, otherwise
    with 1; prints the nodes that the next start should leave out.
    """
    os.chdir(os.environ.get("SLURM_SUBMIT_DIR", "."))  # for which the stage's arguments hold
    verb, folder, name, *rest = sys.argv[1:] if argv is None else argv
    stage = load_stage(Path(folder), name)
    raise SystemExit(begin(stage, rest) if verb == "begin" else end(stage, int(rest[0]), rest[1]))


def begin(stage: Stage, nodes: Sequence[str]) -> int:
    """Notes a start.

    Returns:
        0, or FINISHED_STATUS.

    Raises:
        Refusal: the stage was cancelled, or the last starts of this job have brought it no further.
    """
    if stage.is_finished:
        return FINISHED_STATUS
    if stage.cancelled_marker.exists():
        raise Refusal(f"stage {stage.name} was cancelled; python -m slurm.resubmit {stage.root} takes it up again")
    reached, job = measure(stage.calls), os.environ.get("SLURM_JOB_ID")
    starts = [event for event in read_ledger(stage) if event["event"] == "start" and event["job"] == job]
    num_fruitless, limit = sum(event["reached"] == reached for event in starts), stage.resources.max_fruitless_restarts
    if limit is not None and num_fruitless > limit:
        why = f"{num_fruitless} starts have ended at {reached}, expected progress after {limit} restarts"
        _note(stage, {"event": "end", "status": 1, "goes_on": False, "why": why, "reached": reached})
        raise Refusal(
            f"stage {stage.name}: {why}; see python -m slurm.status {stage.root}, then python -m slurm.resubmit "
            f"{stage.root}"
        )
    forget_ranks(stage)
    # The launcher may have been killed before it could.
    write_json(stage.started_marker, stage.record(job_id=_own_id()))
    _note(stage, {"event": "start", "nodes": list(nodes), "reached": reached})
    return 0


def end(stage: Stage, status: int, state: str) -> int:
    """Notes an end.

    Args:
        stage: that has ended.
        status: of srun: the highest of its tasks'.
        state: of the job, of which RUNNING and TIME_LIMIT leave the decision to us.

    Returns:
        0 where the job is to be requeued, FINISHED_STATUS, or 1.
    """
    starts = [event for event in read_ledger(stage) if event["event"] == "start"]
    if status == 0 and not stage.is_finished:  # the last rank may not have seen the others' notes yet
        seconds = round(time.time() - starts[-1]["time"], 1)
        write_json(stage.marker, stage.record(seconds=seconds, job_id=_own_id()))
    nodes: list[str] = starts[-1]["nodes"] if starts else []
    notes = read_notes(stage, attempt())
    unfit = unfit_nodes(stage, attempt(), nodes) if UNFIT_STATUS in _statuses(notes) else []
    goes_on, why = decide(stage, status, state, notes, len(nodes) * stage.config.tasks, unfit)
    event = {"event": "end", "status": status, "goes_on": goes_on, "why": why, "reached": measure(stage.calls)}
    _note(stage, event | {"unfit": unfit})
    sys.stderr.write(f"slurm: stage {stage.name}: {why}; {'requeued' if goes_on else 'not requeued'}\n")
    if stage.is_finished:
        forget_ranks(stage)
        return FINISHED_STATUS
    if goes_on and unfit:
        known = [node for event in read_ledger(stage) for node in event.get("unfit", ())]
        sys.stdout.write(",".join(dict.fromkeys(filter(None, [stage.resources.exclude, *known]))) + "\n")
    return 0 if goes_on else 1


def decide(
    stage: Stage, status: int, state: str, notes: Mapping[int, Note], num_ranks: int, unfit: Sequence[str]
) -> tuple[bool, str]:
    """Whether a job goes on after this end, and why it has ended, in words.

    A refusal is final. An exception is, too, where every rank has lived to note its end; where one has not, the
    others' exceptions are of its loss, or of a bug that shows again until `max_fruitless_restarts`.
    """
    if stage.is_finished:
        return False, "finished"
    if stage.cancelled_marker.exists():
        return False, "cancelled"
    if state not in ("RUNNING", "TIME_LIMIT"):
        return False, f"ended by SLURM (node failure, requeue or scancel), job {state}"
    if UNFIT_STATUS in _statuses(notes):
        named = bool(unfit) and bool(stage.resources.exclude_bad_nodes)
        return named, f"preflight found {', '.join(unfit) or 'every node'} unfit"
    failed = sorted(
        (note["time"], rank) for rank, note in notes.items() if note["status"] not in (0, STOPPED_STATUS, LOST_STATUS)
    )
    refused = [rank for _, rank in failed if notes[rank]["is_refusal"]]
    if refused or (failed and len(notes) >= num_ranks):
        first = refused[0] if refused else failed[0][1]
        return False, f"rank {first} on {notes[first]['host']} failed: {_words(notes[first])}"
    if STOPPED_STATUS in _statuses(notes) and len(notes) >= num_ranks:  # where one was lost, SLURM may ask the others
        return True, "asked to stop (time limit, preemption or signal)"
    if state == "TIME_LIMIT":
        return True, "killed at the time limit, without having saved"
    seen = f"; rank {failed[0][1]}: {_words(notes[failed[0][1]])}" if failed else ""
    return True, f"a rank or node was lost (srun ended with {status}){seen}"


def _words(note: Note) -> str:
    return note["why"] or f"it ended with status {note['status']}"


def _statuses(notes: Mapping[int, Note]) -> set[int]:
    return {note["status"] for note in notes.values()}


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
