"""Before step 0: every rank examines its node with `magvit doctor`, and a node that is not as it should be is named."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from slurm.arguments import first_value
from slurm.progress import read
from slurm.stages import Stage

UNFIT_STATUS = 69
"""Of a rank whose preflight has found a node unfit (EX_UNAVAILABLE)."""
PATIENCE_S = 300.0
"""How long ranks wait for each other: longer than a cold import of torch from a busy file system."""


def is_wanted(stage: Stage) -> bool:
    """Whether the stage's ranks examine their nodes; where nothing is said, in jobs of more than one process."""
    if stage.resources.preflight is not None:
        return stage.resources.preflight
    return stage.config.nodes * stage.config.tasks > 1


def examine(stage: Stage, attempt: str, port: int) -> None:
    """Runs `magvit doctor` as this rank, with a meeting port of its own. Collective.

    Raises:
        SystemExit: with UNFIT_STATUS, on every rank, where a rank has a problem or does not come.
    """
    command = [sys.executable, "-W", "ignore", "-m", "magvit_scale.cli", "doctor", *_arguments(stage, attempt)]
    try:
        done = subprocess.run(
            command, env=os.environ | {"MASTER_PORT": str(port)}, check=False, timeout=3 * PATIENCE_S
        ).returncode
    except subprocess.TimeoutExpired:
        done = 1
    if done:
        raise SystemExit(UNFIT_STATUS)


def unfit_nodes(stage: Stage, attempt: str, nodes: Sequence[str]) -> list[str]:
    """Nodes of an attempt whose ranks reported a problem or nothing at all; none where that is so of every node."""
    reports = [json.loads(path.read_text()) for path in _reports(stage, attempt).glob("*.json")]
    unwell = {report["host"] for report in reports if report["problems"] or not report["is_final"]}
    fit = {report["host"] for report in reports} - unwell
    unfit = [node for node in nodes if node not in fit]
    return unfit if len(unfit) < len(nodes) else []


def _reports(stage: Stage, attempt: str) -> Path:
    return Path(stage.folder, "preflight", f"{stage.name}.{attempt}")


def _arguments(stage: Stage, attempt: str) -> list[str]:
    paths = {"folder": stage.folder, "reports": str(_reports(stage, attempt))}
    if shards := first_value(stage.calls, "clips.shards") or first_value(stage.calls, "tokens"):
        paths["shards"] = shards
    # Quoted, as YAML would cut a folder's name at ` #`.
    arguments = [f"{key}={json.dumps(path, ensure_ascii=False)}" for key, path in paths.items()]
    if (workers := first_value(stage.calls, "clips.num_workers")) is not None:
        arguments.append(f"num_workers={workers}")
    now, every = read(stage.calls), first_value(stage.calls, "run.checkpoint_every")
    if now and now.step_s and every:
        arguments.append(f"minutes_between_checkpoints={every * now.step_s / 60}")
    return [*arguments, f"patience_s={PATIENCE_S}", f"time_limit_minutes={stage.resources.time_limit_minutes}"]
