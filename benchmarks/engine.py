"""The training engine beside a bare loop: `python -m benchmarks.engine`, about three minutes of one core.

Stage 2 of the demo in one process, on one batch of tokens in memory: forward, backward and step in plain PyTorch, the
same through DeepSpeed, our step with its tasks, masks and losses; then the loop around that step. What the loop itself
costs is measured around many steps that do nothing: it is less than a shared machine lets one see beside a real step.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Measured, Work, compare, cpu_seconds, summarise, write_results
from magvit_scale.commit.step import commit_step
from magvit_scale.commit.tasks import MASK_TOKEN, canvases_of
from magvit_scale.commit.transformer import CommitTransformer, decayed_parameters
from magvit_scale.config import TrainCommitConfig, load
from magvit_scale.training import distributed, engines
from magvit_scale.training.checkpoint import TrainingState
from magvit_scale.training.flops import count_flops
from magvit_scale.training.health import finite_guard
from magvit_scale.training.loop import train
from magvit_scale.training.ranks import Ranks
from magvit_scale.training.run import Work as LoopWork
from magvit_scale.training.throughput import Throughput

ROOT = Path(__file__).parent
OUTPUT = ROOT / "results" / "engine.json"
LATENT_SHAPE, CODEBOOK_SIZE, NUM_CLASSES = (4, 4, 4), 256, 8
STEPS, PAIRS, EMPTY_STEPS = 4, 30, 3000
Batch = dict[str, Tensor]


def main() -> None:
    """Measures and writes results/engine.json."""
    ranks = distributed.start()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(demo_config(Path(name)), ranks)
        names = ("bare PyTorch", "bare DeepSpeed", "our step", "our step, its operations counted")
        works = (bench.bare, bench.bare_engine, bench.own, bench.counted)
        steps = compare(dict(zip(names, works, strict=True)))
        loop = bench.in_the_loop()
        own = compare({"the loop around nothing": bench.empty_loop(), "Throughput around nothing": empty_throughput})
    distributed.stop()
    share = own["the loop around nothing"].ms_per_item / steps["bare PyTorch"].ms_per_item
    groups: dict[str, Mapping[str, Any]] = {
        "Steps of the demo's transformer, batches of 64": steps,
        "The loop around them, step by step in turn": loop,
        "The loop alone, a log in ten steps": own,
        "The loop's own time": {"share of a bare step": f"{share:.3%}"},
    }
    write_results(OUTPUT, "Training engine", "python -m benchmarks.engine", groups)
    for row in (steps | loop | own).values():
        sys.stdout.write(f"{row.name}: {row.ms_per_item:.4g} ms, x {row.ratio:.4f}\n")


def demo_config(folder: Path) -> TrainCommitConfig:
    """Stage 2 of the demo, without what needs files."""
    overrides = [f"run.folder={folder}", "tokens=none", "tokenizer=none", "run.sample_every=0"]
    config = load(TrainCommitConfig, [ROOT.parent / "configs/commit/demo.yaml"], overrides)
    decided = {"latent_shape": LATENT_SHAPE, "codebook_size": CODEBOOK_SIZE, "num_classes": NUM_CLASSES}
    return replace(config, model=replace(config.model, **decided))  # type: ignore[arg-type]


class Bench:
    """One model bare and one in an engine, and one batch for both."""

    def __init__(self, config: TrainCommitConfig, ranks: Ranks):
        self.config, self.ranks, self.folder = config, ranks, Path(config.run.folder)
        self.canvases = ("z", *canvases_of(config.tasks))
        self.batch = random_batch(config.run.global_batch_size, len(self.canvases))
        self.model, model = CommitTransformer(config.model), CommitTransformer(config.model)
        optim = config.optim
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=optim.learning_rate, betas=optim.betas)
        groups = decayed_parameters(model)
        self.engine = engines.build_engine("transformer", model, groups, config.run, optim, ranks)
        self.guard = finite_guard(distributed.any_over_ranks)

    def bare(self) -> int:
        """Forward, backward, clipping, AdamW."""
        for _ in range(STEPS):
            self.loss(self.model, self.model).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.gradient_clipping)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return STEPS

    def bare_engine(self) -> int:
        """The same of a DeepSpeed engine."""
        for _ in range(STEPS):
            self.engine.backward(self.loss(self.engine, self.engine.module))
            self.engine.step()
        return STEPS

    def loss(self, forward: Any, model: CommitTransformer) -> Tensor:
        """Cross-entropy of the batch's own tokens."""
        tokens = self.batch["tokens"][:, 0].flatten(1)
        sequence = model.build_sequence(torch.full((len(tokens),), MASK_TOKEN), self.batch["label"], tokens)
        return F.cross_entropy(model.at_latents(forward(sequence)).flatten(0, 1), tokens.flatten())

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """One step of stage 2, as train-commit has it."""
        return commit_step(self.engine, [batch], step, self.config, self.canvases, self.guard)

    def own(self) -> int:
        """Our steps, and nothing around them."""
        for step in range(STEPS):
            self.update(self.batch, step)
        return STEPS

    def counted(self) -> int:
        """Our steps as the first of a run is."""
        for step in range(STEPS):
            count_flops(partial(self.update, self.batch, step))
        return STEPS

    def in_the_loop(self) -> dict[str, Measured]:
        """CPU time from one request for a batch to the next; between them our step takes its turn alone."""
        found: dict[str, list[float]] = {"our step alone": [], "our step in the loop": []}

        def batches(start: int) -> Iterator[Batch]:
            for step in range(PAIRS):
                begun = cpu_seconds()
                self.update(self.batch, step)
                alone = cpu_seconds()
                yield self.batch
                for name, seconds in zip(found, (alone - begun, cpu_seconds() - alone), strict=True):
                    found[name].append(1000 * seconds)
            yield self.batch

        self.train(PAIRS + 1, batches, self.update)
        return summarise(found, dict.fromkeys(found, 1))

    def empty_loop(self) -> Work:
        """The loop around an update that has its scalars ready."""
        ready = self.update(self.batch, 0)

        def work() -> int:
            self.train(EMPTY_STEPS, lambda start: repeat(self.batch), lambda batch, step: ready)
            return EMPTY_STEPS

        return work

    def train(self, steps: int, batches: Callable[[int], Iterator[Batch]], update: Any) -> None:
        """A run of its own, whose checkpoint holds nothing."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            run = replace(self.config.run, folder=folder, steps=steps, checkpoint_every=steps)
            work = LoopWork(
                TrainingState({}, {}), batches, update, sample=lambda tracker, step: None, finish=tuple, data=""
            )
            train(replace(self.config, run=run), self.ranks, work)


def empty_throughput() -> int:
    """What a loop pays for measuring its speed, a log in ten steps."""
    throughput = Throughput(samples_per_step=1)
    for step in range(EMPTY_STEPS):
        with throughput.waiting():
            pass
        throughput.step_done(("loss/total",))
        if step % 10 == 9:
            throughput.metrics()
    return EMPTY_STEPS


def random_batch(size: int, num_canvases: int) -> Batch:
    """Token clips of noise."""
    return {
        "tokens": torch.randint(CODEBOOK_SIZE, (size, num_canvases, *LATENT_SHAPE)),
        "label": torch.randint(NUM_CLASSES, (size,)),
        "position": torch.arange(size),
    }


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
