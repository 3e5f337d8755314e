"""Checkpoints of every ZeRO stage and two worlds, continued in every other. The processes only compute and write files;
test_checkpoints.py judges those.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from magvit_scale.config import OptimConfig, RunConfig
from magvit_scale.training import checkpoint, distributed, engines
from magvit_scale.training.ema import ExponentialMovingAverage
from magvit_scale.training.ranks import Ranks
from magvit_scale.training.retention import Retention
from tests.distributed.launching import wait_for

STAGES = (0, 1, 2, 3)
WORLDS = (1, 2)
GLOBAL_BATCH_SIZE = 4
SAVED_AT, LATE_START, END = 3, 4, 7
"""Steps: of the checkpoint, of the second engine's first update, of the end."""


def run_world(folder: Path) -> None:
    """What the processes of one world do."""
    ranks = distributed.start()
    reduce_over_ranks(ranks, folder)
    write_and_read(ranks, folder)
    distributed.stop()


class Odd(nn.Module):
    """Sizes that divide by nothing: 81, 3, 3, 3, 33, 11, 11, 1 and 1 elements."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, 3, 3, padding=1)
        self.norm = nn.GroupNorm(1, 3)
        self.hidden = nn.Linear(3, 11)
        self.out = nn.Linear(11, 1, bias=False)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, clip: Tensor) -> Tensor:
        x = self.norm(self.convolution(clip)).relu().mean((2, 3, 4))
        return self.scale * self.out(self.hidden(x).tanh())


class Training:
    """Two engines (the second starts late), an average and a buffer, of one seed."""

    def __init__(self, stage: int, seed: int, ranks: Ranks, folder: Path) -> None:
        torch.manual_seed(seed)
        self.ranks, self.step = ranks, 0
        run = RunConfig(folder="", steps=END, global_batch_size=GLOBAL_BATCH_SIZE, deepspeed=ds_file(folder, stage))
        optim = OptimConfig(betas=(0.5, 0.99), weight_decay=0.05, gradient_clipping=0.3)
        self.engines = {}
        for name in ("early", "late"):
            model = Odd()
            decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
            others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
            self.engines[name] = engines.build_engine(name, model, (decayed, others), run, optim, ranks)
        self.average = ExponentialMovingAverage(self.engines["early"], 0.9)
        self.count = nn.BatchNorm1d(1, affine=False)

    @property
    def state(self) -> checkpoint.TrainingState:
        return checkpoint.TrainingState({**self.engines, "average": self.average}, {"count": self.count})

    def run_to(self, end: int) -> None:
        for step in range(self.step, end):
            generator = torch.Generator().manual_seed(step)
            clips = torch.randn(GLOBAL_BATCH_SIZE, 1, 2, 5, 5, generator=generator)
            targets = clips.amax((1, 2, 3, 4), keepdim=False)[:, None]
            mine = slice(self.ranks.rank, None, self.ranks.world_size)
            for name, start in (("early", 0), ("late", LATE_START)):
                if step >= start:
                    engine = self.engines[name]
                    engine.set_learning_rate(0.01 / (1 + step))
                    engine.backward((engine(clips[mine]) - targets[mine]).square().mean())
                    engine.step()
            self.average.update()
            self.count(clips.mean((1, 2, 3, 4))[:, None])
        self.step = end

    def save(self, folder: Path) -> None:
        writer = checkpoint.Writer(folder, self.state, self.ranks, distributed.barrier, Retention(newest=9))
        writer.save({"step": self.step}, "config: of the run\n")
        with torch.no_grad():  # what is written is what was there
            for _, _, view in self.average.owned_slices():
                view.add_(1)
        writer.wait()
        with torch.no_grad():
            for _, _, view in self.average.owned_slices():
                view.sub_(1)
        distributed.barrier()

    def destroy(self) -> None:
        for engine in self.engines.values():
            engine.deepspeed.destroy()


@contextmanager
def trained(stage: int, seed: int, ranks: Ranks, folder: Path) -> Iterator[Training]:
    training = Training(stage, seed, ranks, folder)
    yield training
    training.destroy()


def write_and_read(ranks: Ranks, folder: Path) -> None:
    """Trains every stage without interruption; then continues every checkpoint of both worlds in every stage."""
    for stage in STAGES:
        with trained(stage, 1, ranks, folder) as training:
            for step in (SAVED_AT, END):
                training.run_to(step)
                training.save(folder / source_name(ranks.world_size, stage))
    if ranks.is_main:
        (folder / f"written_{ranks.world_size}").touch()
    for world in WORLDS:
        wait_for(folder / f"written_{world}")
        for stage in STAGES:  # stage 3 last: what it does to the process stays
            for source in STAGES:
                continue_checkpoint(source_name(world, source), stage, ranks, folder)


def continue_checkpoint(source: str, stage: int, ranks: Ranks, folder: Path) -> None:
    """Loads into other random weights, saves at once, trains to the end, saves again."""
    with trained(stage, 2, ranks, folder) as training:
        newest = folder / source / f"step_{SAVED_AT:08d}"
        checkpoint.load(newest, training.state)
        training.step = checkpoint.step_of(newest)
        for step in (SAVED_AT, END):
            training.run_to(step)
            training.save(folder / continued_name(source, ranks.world_size, stage))


def source_name(world: int, stage: int) -> str:
    return f"world{world}_stage{stage}"


def continued_name(source: str, world: int, stage: int) -> str:
    return f"{source}_to_{source_name(world, stage)}"


def ds_file(folder: Path, stage: int) -> str:
    """DeepSpeed's file of a stage; the tests write it before the processes start."""
    return str(folder / f"zero{stage}.json")


def reduce_over_ranks(ranks: Ranks, folder: Path) -> None:
    """Each rank says what it got."""
    mine = torch.tensor([1.0 + ranks.rank, 10.0])
    slices = [("whole", 2 * ranks.rank, torch.tensor([-0.0, float(ranks.rank)]))]
    gathered = distributed.gather(slices, {"whole": torch.Size([2, ranks.world_size])}, ranks)
    got = {
        "mean": distributed.mean_over_ranks(mine).tolist(),
        "sum": distributed.sum_over_ranks(mine).tolist(),
        "all": distributed.all_of(mine).tolist(),
        "mine": mine.tolist(),
        "any": distributed.any_over_ranks(False, ranks.rank == 0, ranks.rank == 1, True),
        "told": [distributed.tell("wörter" if ranks.is_main else ""), distributed.tell("")],
        "number": distributed.tell_number(ranks.rank + 7),
        "gathered": {name: [repr(value) for value in whole.flatten().tolist()] for name, whole in gathered.items()},
        "denormal": (torch.tensor(1e-30) * torch.tensor(1e-10)).item(),
    }
    (folder / f"reduced.{ranks.world_size}.{ranks.rank}.json").write_text(json.dumps(got))
