"""Runs that go on with other numbers of processes and other ZeRO stages: one run, and not one after the other."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from magvit_scale import export
from magvit_scale.training.signals import STOPPED_STATUS
from tests.integration.alike import timeless
from tests.integration.nursery import Nursery
from tests.integration.tiny_runs import TinyRuns

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
STEPS, LEG = 10, 2
# (processes, ZeRO stage), two steps each.
LEGS = ((1, 0), (2, 1), (4, 2), (2, 3), (1, 0))
SPELL = "tests.integration.summons:recorded_leg"
# What depends on how a batch is divided: dropout's draws, the entropy of a micro-batch, revival's choice.
UNDIVIDED = {"vqgan": ["loss.entropy_weight=0", "codebook_use.revive_every=0"], "commit": ["model.dropout=0"]}
# What is logged of a batch's parts alone: means over tokens, of which some clips have more, and that entropy.
DIVIDED = ("loss/entropy", "loss/refine", "loss/mask", "loss/reconstruct")
# Adam divides by a gradient's size, so rounding of a gradient near zero is seen in full: the rate bounds it.
GENTLE = ["run.keep_checkpoints=10", "optim.learning_rate=1e-4", "optim.warmup_steps=0", "optim.betas=[0.9,0.99]"]


def batches(folder: Path) -> list[tuple[int, list[float]]]:
    """(steps completed, one figure per sample) of every step, the ranks' parts joined in their order."""
    parts: dict[int, list[float]] = {}
    for path in sorted(folder.glob("rank*.jsonl")):
        for step, number, content in map(json.loads, path.read_text().splitlines()):
            assert step == number
            parts.setdefault(step, []).extend(figure for part in content for figure in part)
    return sorted(parts.items())


def undivided(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without `DIVIDED`."""
    return [{name: value for name, value in line.items() if name not in DIVIDED} for line in timeless(run)]


def exported(run: Path, step: int, folder: Path) -> dict[str, Tensor]:
    """All tensors that `magvit export` makes of a checkpoint."""
    export.main([f"run={run}", f"step={step}", f"output={folder}"])
    return {f"{path.parent.relative_to(folder)}/{name}": tensor
            for path in folder.rglob("model.safetensors") for name, tensor in load_file(path).items()}  # fmt: skip


@pytest.mark.parametrize("program", ["vqgan", "commit"])
def test_a_run_goes_on_with_any_number_of_processes_and_any_stage(
    nursery: Nursery, tiny_runs: TinyRuns, tmp_path: Path, program: str
) -> None:
    runs = {name: tmp_path / name / "run" for name in ("straight", "elastic")}
    for run in runs.values():
        run.parent.mkdir()
    more = [*UNDIVIDED[program], *GENTLE]
    straight = [*tiny_runs.of(program, runs["straight"], 0, steps=STEPS), *more]
    nursery.succeed(straight, 1, cast=SPELL, program=program, folder=str(runs["straight"].parent), stop_at=STEPS)
    for leg, (num_ranks, stage) in enumerate(LEGS, 1):
        elastic = [*tiny_runs.of(program, runs["elastic"], stage, steps=STEPS), *more]
        told = {"program": program, "folder": str(runs["elastic"].parent), "stop_at": leg * LEG}
        world, statuses = nursery.run(elastic, num_ranks, cast=SPELL, **told)
        assert statuses == [STOPPED_STATUS if leg < len(LEGS) else 0] * num_ranks, world.describe()
    assert batches(runs["elastic"].parent) == batches(runs["straight"].parent)
    assert len(batches(runs["elastic"].parent)) == STEPS
    for found, expected in zip(*(undivided(run) for run in (runs["elastic"], runs["straight"])), strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    for step in range(LEG, STEPS + 1, LEG):
        tensors, expected_tensors = (exported(run, step, run.parent / str(step)) for run in
                                     (runs["elastic"], runs["straight"]))  # fmt: skip
        assert tensors.keys() == expected_tensors.keys()
        differences = {name: (tensors[name] - expected_tensors[name]).abs().max().item() for name in tensors}
        assert max(differences.values()) < 1e-5, differences
