"""Submits the stages of a chain as dependent SLURM jobs and leaves; the jobs mark what they finish."""

import json
import shlex
import subprocess
import sys
from typing import Any

import submitit

from magvit_scale.config import Refusal, ResourcesConfig
from slurm.job import Job, forget_ranks
from slurm.stages import Stage, write_json

LIVING_STATES = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "RESIZING", "STOPPED")


def submit_chain(stages: list[Stage], resources: ResourcesConfig) -> dict[str, str]:
    """Submits every stage, each to start when the one before has ended well.

    Returns:
        The SLURM job id of each stage.

    Raises:
        Refusal: a stage is still queued or running from an earlier call, or SLURM did not take a job.
    """
    for stage in stages:
        _refuse_living(stage)
    jobs: dict[str, str] = {}
    for stage in stages:
        previous = next(reversed(jobs.values()), None)
        forget_ranks(stage)
        jobs[stage.name] = _submit(stage, resources, previous)
        write_json(stage.started_marker, stage.record(job_id=jobs[stage.name]))
    return jobs


def _submit(stage: Stage, resources: ResourcesConfig, previous: str | None) -> str:
    try:
        executor = submitit.AutoExecutor(
            folder=stage.logs,
            cluster="slurm",
            # Before submitit installs its handler and after Python has dropped it, USR2 would kill the task.
            slurm_python=f"env --ignore-signal=USR2 {shlex.quote(sys.executable)}",
        )
        executor.update_parameters(**parameters(stage, resources, previous))
        return str(executor.submit(Job(stage=stage)).job_id)
    except (RuntimeError, subprocess.CalledProcessError, submitit.core.utils.FailedJobError) as error:
        raise Refusal(f"stage {stage.name}: SLURM did not take the job: {' '.join(str(error).split())}") from error


def parameters(stage: Stage, resources: ResourcesConfig, previous: str | None) -> dict[str, Any]:
    """What submitit is told about a stage's job; whatever is null is left to the cluster."""
    additional = {"requeue": True, "kill-on-invalid-dep": "yes", **resources.additional}
    if previous:
        additional["dependency"] = f"afterok:{previous}"
    asked = {
        "name": stage.name,
        "nodes": stage.config.nodes,
        "tasks_per_node": stage.config.tasks,
        "gpus_per_node": stage.config.gpus_per_node or None,
        "cpus_per_task": stage.config.cpus_per_task,
        "timeout_min": resources.time_limit_minutes,
        "mem_gb": resources.mem_gb,
        "slurm_partition": resources.partition,
        "slurm_account": resources.account,
        "slurm_qos": resources.qos,
        "slurm_constraint": resources.constraint,
        "slurm_signal_delay_s": resources.signal_delay_s,
        "slurm_setup": list(resources.setup) or None,
        "slurm_additional_parameters": additional,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _refuse_living(stage: Stage) -> None:
    if not stage.started_marker.exists():
        return
    job_id = json.loads(stage.started_marker.read_text()).get("job_id")
    if job_id and _state(job_id) in LIVING_STATES:
        raise Refusal(f"stage {stage.name} is already SLURM job {job_id}; wait for it, or `scancel {job_id}` first")


def _state(job_id: str) -> str:
    answer = subprocess.run(
        ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job_id}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip()
