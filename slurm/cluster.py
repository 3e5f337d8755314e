"""Submits the stages of a chain as dependent SLURM jobs and leaves; the jobs mark what they finish."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import submitit

from magvit_scale.config import Refusal
from magvit_scale.files import write_json
from slurm import queue, snapshot
from slurm.job import Job
from slurm.stages import Stage, read_marker

OVERRULING = ("SBATCH_TIMELIMIT", "SBATCH_NO_REQUEUE", "SBATCH_JOB_NAME", "SBATCH_SIGNAL", "SBATCH_OPEN_MODE",
              "SBATCH_ARRAY_INX", "SBATCH_EXCLUSIVE")  # fmt: skip
"""Variables of sbatch that would go before what is asked for here."""
BATCH_SCRIPT = Path(__file__).with_name("around_srun.sh")


def submit_chain(stages: Sequence[Stage], code: Path) -> dict[str, str]:
    """Submits every stage, each to start when the one before has ended well.

    Args:
        stages: in order; those of one group become one job array.
        code: the copy of the checkout that the jobs run.

    Returns:
        The SLURM job id of each stage.

    Raises:
        Refusal: SLURM did not take a job.
    """
    jobs: dict[str, str] = {}
    previous: str | None = None
    for _, members in groupby(stages, key=lambda stage: stage.group):
        group = [snapshot.preserve(stage, code.parent / "configs") for stage in members]
        try:
            ids = _submit(group, code, previous)
        except Refusal as refusal:
            queued = ", ".join(jobs) or "none"
            raise Refusal(
                f"{refusal} (queued before it: {queued}); python -m slurm.cancel {group[0].root}, then slurm.resubmit"
            ) from refusal
        jobs |= dict(zip([stage.name for stage in group], ids, strict=True))
        previous = ids[0].split("_")[0]
    return jobs


class _Preview(submitit.SlurmExecutor):
    """Writes batch scripts where there is no SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def batch_script(group: Sequence[Stage], code: Path) -> str:
    """The script that sbatch would get for a stage or an array, on a machine without SLURM too."""
    executor = _executor(_Preview, group, code, None)
    if len(group) > 1:
        executor.parameters["map_count"] = len(group)
    # submitit has no public way to it.
    return str(executor._make_submission_file_text(executor._submitit_command_str, "SUBMISSION"))


def _submit(group: Sequence[Stage], code: Path, previous: str | None) -> list[str]:
    for stage in group:
        stage.cancelled_marker.unlink(missing_ok=True)
        # Before the job: it may start at once, and reads who it is.
        write_json(stage.started_marker, stage.record(job_id=None))
    try:
        executor = _executor(submitit.SlurmExecutor, group, code, previous)
        with _own_environment(), executor.batch():  # several become an array
            jobs = [executor.submit(Job(stage=stage)) for stage in group]
    except (RuntimeError, subprocess.CalledProcessError, submitit.core.utils.FailedJobError) as error:
        raise Refusal(f"stage {group[0].group}: SLURM did not take it: {' '.join(str(error).split())}") from error
    ids = [str(job.job_id) for job in jobs]
    for stage, job_id in zip(group, ids, strict=True):
        write_json(stage.started_marker, stage.record(job_id=job_id))
    return ids


@contextmanager
def _own_environment() -> Iterator[None]:
    """Without what an interactive job, or a habit, would change: sbatch takes variables before its script."""
    kept = dict(os.environ)
    for name in kept:
        if name in OVERRULING or (name.startswith("SLURM_") and name != "SLURM_CONF"):
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)


def _executor(
    kind: type[submitit.SlurmExecutor], group: Sequence[Stage], code: Path, previous: str | None
) -> submitit.SlurmExecutor:
    python = group[0].resources.python or shlex.quote(sys.executable)
    # Before submitit installs its handler and after Python has dropped it, USR2 would kill the task.
    executor = kind(folder=group[0].logs, python=f'sh -c \'trap "" USR2; exec "$@"\' sh {python}')
    executor.update_parameters(**parameters(group, code, previous))
    return executor


def parameters(group: Sequence[Stage], code: Path, previous: str | None) -> dict[str, Any]:
    """What submitit is told about a job or array; whatever is null is left to the cluster."""
    stage, resources = group[0], group[0].resources
    tasks, additional, srun = _tasks(stage)
    additional |= {"requeue": True, "kill-on-invalid-dep": "yes"}
    own = resources.additional or {}
    waits_for = [f"{'afterok' if stage.needs_success else 'afterany'}:{previous}"] if previous else []
    if dependencies := [*waits_for, *filter(None, [own.get("dependency")])]:
        own = own | {"dependency": ",".join(dependencies)}
    asked = {
        "job_name": stage.group,
        "nodes": stage.config.nodes,
        **tasks,
        "gpus_per_node": stage.config.gpus_per_node or None,
        "time": resources.time_limit_minutes,
        "mem": None if resources.mem_gb is None else f"{round(resources.mem_gb * 1024)}M",
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclude": resources.exclude,
        "comment": f"magvit_scale {stage.root}",
        "signal_delay_s": resources.signal_delay_s,
        "setup": _setup(group, code),
        "srun_args": [*srun, *(resources.srun or ())],
        "array_parallelism": stage.config.array_parallelism,
        "additional_parameters": additional | own,
    }
    return {name: value for name, value in asked.items() if value not in (None, [])}


def _tasks(stage: Stage) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """How many processes, as submitit's parameters, further ones of sbatch, and arguments of srun."""
    tasks, cpus = stage.config.tasks, stage.config.cpus_per_task
    # Since SLURM 22.05 srun does not take it from sbatch.
    srun = [f"--cpus-per-task={cpus}"] if cpus else []
    if len(stage.calls) > 1:
        srun.append("--kill-on-bad-exit=1")  # or ranks would wait for the dead one between two programs
    if not stage.config.min_nodes:
        return {"ntasks_per_node": tasks, "cpus_per_task": cpus}, {}, srun
    # Told of tasks, SLURM takes as few nodes as it may; so it hears of processors, and srun of the tasks.
    nodes = {"nodes": f"{stage.config.min_nodes}-{stage.config.nodes}", "mincpus": tasks * (cpus or 1)}
    return {}, nodes, [f"--ntasks-per-node={tasks}", *srun]


def _setup(group: Sequence[Stage], code: Path) -> list[str]:
    """Shell lines before srun: the copied code, the user's lines, and what happens around the program."""
    python = shlex.quote(sys.executable)
    return [
        # Set where sbatch was told to export nothing, and srun would then not even hand on what is exported here.
        "unset SLURM_EXPORT_ENV",
        *(group[0].resources.setup or ()),
        # Python looks for modules where it is started, before all else; the jobs go back to where they were submitted.
        f"cd {shlex.quote(str(code))}",
        'export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"',
        f"stages=({shlex.join(stage.name for stage in group)})",
        'stage="${stages[${SLURM_ARRAY_TASK_ID:-0}]}"',
        f'attempts() {{ {python} -m slurm.attempts "$1" {shlex.quote(group[0].folder)} "$stage" "${{@:2}}"; }}',
        f"wanted_nodes={group[0].config.nodes}",
        *BATCH_SCRIPT.read_text().splitlines(),
    ]


def refuse_living(stages: Sequence[Stage]) -> None:
    """Stops stages from being run twice at once.

    Raises:
        Refusal: a job of an earlier launch is queued or runs, or SLURM does not say.
    """
    begun = [stage for stage in stages if not stage.is_finished and stage.started_marker.exists()]
    jobs = {job_id: stage for stage in begun if (job_id := read_marker(stage.started_marker)["job_id"])}
    for job in queue.ask(list(jobs)).values():
        if job.is_living:
            stage = jobs[job.job_id]
            raise Refusal(
                f"stage {stage.name} is already SLURM job {job.job_id}; see python -m slurm.status {stage.root}"
            )
