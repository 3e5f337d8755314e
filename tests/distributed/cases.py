"""What the processes of tests/distributed do. They only compute and write files; the tests judge those."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from magvit_scale.commit.step import commit_step
from magvit_scale.commit.tasks import CLIP, canvases_of
from magvit_scale.commit.transformer import CommitTransformer, decayed_parameters
from magvit_scale.config import (
    TASKS,
    ClipsConfig,
    DiscriminatorConfig,
    OptimConfig,
    Refusal,
    RunConfig,
    TrainCommitConfig,
    TrainVQGANConfig,
    TransformerConfig,
    VQGANConfig,
    VQGANLossConfig,
)
from magvit_scale.train_vqgan import build_models, build_training
from magvit_scale.training import checkpoint, distributed
from magvit_scale.training.distributed import Ranks
from magvit_scale.training.ema import ExponentialMovingAverage
from magvit_scale.training.health import finite_guard
from magvit_scale.vqgan.step import VQGANTraining, vqgan_step
from tests.distributed.launching import wait_for

STAGES = (0, 1, 2)
WORLDS = (1, 2)
GLOBAL_BATCH_SIZE = 4
SAVED_AT, LATE_START, END = 3, 4, 7
"""Steps: of the checkpoint, of the second engine's first update, of the end."""


def alone(folder: Path) -> None:
    """The world of one process."""
    ranks = distributed.start()
    write_and_read(ranks, folder)
    distributed.stop()


def together(folder: Path) -> None:
    """The world of two processes."""
    ranks = distributed.start()
    reduce_over_ranks(ranks, folder)
    write_and_read(ranks, folder)
    train_vqgan_steps(ranks, folder)
    stop_at_a_broken_value(ranks, folder)
    train_commit_steps(ranks, folder)
    distributed.stop()


# ----------------------------------------------------------------------------------------------------------------------
# Elastic checkpoints


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
    """Two engines (the second starts late) and an average, of one seed."""

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
            self.engines[name] = distributed.build_engine(model, (decayed, others), run, optim, ranks)
        self.average = ExponentialMovingAverage(self.engines["early"].module, 0.9)

    @property
    def state(self) -> checkpoint.TrainingState:
        replicated: dict[str, nn.Module] = {"average": self.average}
        rank, size = self.ranks.rank, self.ranks.world_size
        return checkpoint.TrainingState(self.engines, replicated, rank, size, distributed.barrier)

    def run_to(self, end: int) -> None:
        for step in range(self.step, end):
            generator = torch.Generator().manual_seed(step)
            clips = torch.randn(GLOBAL_BATCH_SIZE, 1, 2, 5, 5, generator=generator)
            targets = clips.amax((1, 2, 3, 4), keepdim=False)[:, None]
            mine = slice(self.ranks.rank, None, self.ranks.world_size)
            for name, start in (("early", 0), ("late", LATE_START)):
                if step >= start:
                    engine = self.engines[name]
                    distributed.set_learning_rate(engine, 0.01 / (1 + step))
                    engine.backward((engine(clips[mine]) - targets[mine]).square().mean())
                    engine.step()
            self.average.update(self.engines["early"].module)
        self.step = end

    def save(self, folder: Path) -> None:
        checkpoint.save(folder, self.step, self.state, keep=9)

    def destroy(self) -> None:
        for engine in self.engines.values():
            engine.destroy()


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
        for source in STAGES:
            for stage in STAGES:
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


# ----------------------------------------------------------------------------------------------------------------------
# Collectives


def reduce_over_ranks(ranks: Ranks, folder: Path) -> None:
    """Each rank says what it got."""
    mine = torch.tensor([1.0 + ranks.rank, 10.0])
    flags = [distributed.any_over_ranks(flag, ranks.device) for flag in (False, ranks.rank == 0, ranks.rank == 1, True)]
    got = {"mean": distributed.mean_over_ranks(mine).tolist(), "mine": mine.tolist(), "any": flags}
    denormal = (torch.tensor(1e-30) * torch.tensor(1e-10)).item()
    (folder / f"denormal.{ranks.rank}.json").write_text(json.dumps(denormal))
    (folder / f"reduced.{ranks.rank}.json").write_text(json.dumps(got))


# ----------------------------------------------------------------------------------------------------------------------
# Steps of the two stages

NUM_STEPS = 4
CLIP_SHAPE = (3, 4, 32, 32)

VQGAN = TrainVQGANConfig(
    run=RunConfig(folder="", steps=NUM_STEPS, global_batch_size=GLOBAL_BATCH_SIZE),
    clips=ClipsConfig(shards="", num_frames=4, size_px=32),
    model=VQGANConfig(base_channels=4, channel_multipliers=(1, 2), num_res_blocks=1, temporal_downsample=(True,),
                      embedding_dim=5, codebook_size=16, num_groups=2),
    discriminator=DiscriminatorConfig(base_channels=4, channel_multipliers=(2, 2)),
    # The entropy loss is of a rank's own vectors, by design; everything else is of the whole batch.
    loss=VQGANLossConfig(perceptual="random", adversarial_weight=0.5, adversarial_start=1, r1_weight=10.0,
                         lecam_weight=0.001, entropy_weight=0.0, ema_decay=0.5),
    optim=OptimConfig(learning_rate=1e-3, betas=(0.5, 0.99)),
)  # fmt: skip

STRONG_LECAM = replace(VQGAN, loss=replace(VQGAN.loss, lecam_weight=0.5))

COMMIT = TrainCommitConfig(
    run=RunConfig(folder="", steps=NUM_STEPS, global_batch_size=GLOBAL_BATCH_SIZE),
    tokens="",
    tokenizer="",
    model=TransformerConfig(num_layers=2, hidden_size=12, mlp_dim=20, num_heads=3, dropout=0.0, latent_shape=(2, 4, 4),
                            codebook_size=13, num_classes=3),
    optim=OptimConfig(learning_rate=1e-2, betas=(0.9, 0.96), weight_decay=0.045, gradient_clipping=0.5),
    one_task_per_step=False,
)  # fmt: skip


def clips_of(step: int) -> Tensor:
    """The global batch of a step, 'b 3 t h w' in [0, 1]."""
    return torch.rand(GLOBAL_BATCH_SIZE, *CLIP_SHAPE, generator=torch.Generator().manual_seed(step))


CANVASES = (CLIP, *canvases_of(TASKS))


def tokens_of(step: int) -> dict[str, Tensor]:
    """The global batch of token step."""
    generator = torch.Generator().manual_seed(step)
    start = step * GLOBAL_BATCH_SIZE
    return {
        "tokens": torch.randint(13, (GLOBAL_BATCH_SIZE, 9, 2, 4, 4), generator=generator),
        "label": torch.randint(3, (GLOBAL_BATCH_SIZE,), generator=generator),
        "position": torch.arange(start, start + GLOBAL_BATCH_SIZE),
    }


def build_vqgan(
    config: TrainVQGANConfig, folder: Path, ranks: Ranks, stage: int
) -> tuple[VQGANTraining, ExponentialMovingAverage]:
    torch.manual_seed(1)
    generator, average, discriminator = build_models(config)
    config = replace(config, run=replace(config.run, deepspeed=ds_file(folder, stage)))
    return build_training(config, ranks, generator, discriminator), average


def train_vqgan_steps(ranks: Ranks, folder: Path) -> None:
    """Some steps with GAN, r1 and LeCam; writes weights, averages and the mean metrics."""
    for stage in STAGES:
        _train_vqgan_steps(VQGAN, ranks, folder, stage, folder / f"vqgan_stage{stage}")
    _train_vqgan_steps(STRONG_LECAM, ranks, folder, 2, folder / "strong_lecam")


def _train_vqgan_steps(config: TrainVQGANConfig, ranks: Ranks, folder: Path, stage: int, output: Path) -> None:
    training, average = build_vqgan(config, folder, ranks, stage)

    def step_once(step: int) -> dict[str, Tensor]:
        metrics = vqgan_step(training, clips_of(step).chunk(ranks.world_size)[ranks.rank], step)
        average.update(training.generator.module)
        return metrics

    metrics = mean_metrics(step_once)
    modules = {"generator": training.generator.module, "discriminator": training.discriminator.module}
    write_result(ranks, output, modules | {"lecam": training.lecam, "average": average}, metrics)
    training.generator.destroy()
    training.discriminator.destroy()


def train_commit_steps(ranks: Ranks, folder: Path) -> None:
    """Some steps on mixed tasks."""
    for stage in STAGES:
        torch.manual_seed(1)
        model = CommitTransformer(COMMIT.model)
        run = replace(COMMIT.run, deepspeed=ds_file(folder, stage))
        engine = distributed.build_engine(model, decayed_parameters(model), run, COMMIT.optim, ranks)

        def step_once(step: int) -> dict[str, Tensor]:
            batch = {name: value.chunk(ranks.world_size)[ranks.rank] for name, value in tokens_of(step).items()}
            return commit_step(engine, batch, step, COMMIT, CANVASES, lambda _: None)  # noqa: B023

        metrics = mean_metrics(step_once)
        write_result(ranks, folder / f"commit_stage{stage}", {"model": model}, metrics)
        engine.destroy()


def mean_metrics(step_once: Callable[[int], dict[str, Tensor]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for step in range(NUM_STEPS):
        found |= {f"{name}@{step}": distributed.mean_over_ranks(value) for name, value in step_once(step).items()}
    return found


def write_result(ranks: Ranks, folder: Path, modules: dict[str, nn.Module], metrics: dict[str, Tensor]) -> None:
    """One file per rank."""
    folder.mkdir(exist_ok=True)
    state = {f"{name}/{key}": tensor.detach().clone().contiguous() for name, module in modules.items()
             for key, tensor in module.state_dict().items()}  # fmt: skip
    save_file(state, folder / f"state.{ranks.rank}.safetensors")
    save_file(metrics, folder / f"metrics.{ranks.rank}.safetensors")


def stop_at_a_broken_value(ranks: Ranks, folder: Path) -> None:
    """A NaN on rank 1 only; each rank writes what it said, and whether its weights moved."""
    training, _ = build_vqgan(VQGAN, folder, ranks, 2)
    guarded = replace(training, guard=finite_guard(lambda flag: distributed.any_over_ranks(flag, ranks.device)))
    before = {name: value.clone() for name, value in training.generator.module.state_dict().items()}
    clip = clips_of(0).chunk(ranks.world_size)[ranks.rank]
    if ranks.rank == 1:
        clip[0, 0, 0, 0, 0] = torch.nan
    try:
        vqgan_step(guarded, clip, step=0)
        said = "nothing"
    except Refusal as refusal:
        said = str(refusal)
    after = training.generator.module.state_dict()
    unchanged = all(torch.equal(before[name], after[name]) for name in before)
    (folder / f"broken.{ranks.rank}.json").write_text(json.dumps({"said": said, "unchanged": unchanged}))
    training.generator.destroy()
    training.discriminator.destroy()
