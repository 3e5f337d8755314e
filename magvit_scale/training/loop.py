"""The one training loop: claim the run folder, resume, step, log, sample, save. It knows no model, loss or
optimiser.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from magvit_scale.config import RunConfig
from magvit_scale.progress import progress_bar
from magvit_scale.training import checkpoint, distributed
from magvit_scale.training.tracking import Tracker, claim_run_folder, refuse_other_config

Batch = TypeVar("Batch")


class _HasRun(Protocol):
    @property
    def run(self) -> RunConfig: ...


def train(
    config: _HasRun,
    ranks: distributed.Ranks,
    *,
    engines: dict[str, Any],
    replicated: dict[str, nn.Module],
    batches: Callable[[int], Iterator[Batch]],
    update: Callable[[Batch, int], Mapping[str, Tensor]],
    sample: Callable[[Tracker, int], None],
    notes: Sequence[str] = (),
) -> None:
    """Trains from the newest complete checkpoint of the run folder, or from the start. Collective: every rank must
    call.

    Args:
        config: resolved; dumped before step 0, and refused where the folder is of another.
        ranks: of `distributed.start`.
        engines: DeepSpeed engines by name.
        replicated: modules with state that every rank holds whole, such as averages.
        batches: first step -> this rank's batches from there.
        update: (batch, steps completed) -> this rank's scalars; one optimiser step.
        sample: shows what the model does; main rank only, no collectives.
        notes: lines for log.txt, what a reader of the run must know.
    """
    run, folder = config.run, Path(config.run.folder)
    refuse_other_config(folder, config)
    state = checkpoint.TrainingState(engines, replicated, ranks.rank, ranks.world_size, distributed.barrier)
    start = _resume(folder, state)
    remaining = zip(range(start, run.steps), batches(start), strict=False)
    if ranks.is_main:
        claim_run_folder(folder, config)
    tracker = Tracker(folder, start) if ranks.is_main else None
    if tracker:
        tracker.note(f"step {start} of {run.steps}, {ranks.world_size} ranks on {ranks.device.type}", *notes)
    with progress_bar(folder.name, run.steps, unit="step", initial=start, is_shown=ranks.is_main) as bar:
        for step, batch in remaining:
            metrics = update(batch, step)
            done, is_last = step + 1, step + 1 == run.steps
            if done % run.log_every == 0 or is_last:
                _log(metrics, done, tracker, bar)
            bar.update(1)
            if tracker and run.sample_every and (done % run.sample_every == 0 or is_last):
                sample(tracker, done)
            if done % run.checkpoint_every == 0 or is_last:
                checkpoint.save(folder / "checkpoints", done, state, run.keep_checkpoints)
    if tracker:
        tracker.close()


def _resume(folder: Path, state: checkpoint.TrainingState) -> int:
    """Fills the state from the newest complete checkpoint; returns the steps completed."""
    newest = checkpoint.latest(folder / "checkpoints")
    if newest is None:
        return 0
    checkpoint.load(newest, state)
    return checkpoint.step_of(newest)


def _log(metrics: Mapping[str, Tensor], step: int, tracker: Tracker | None, bar: Any) -> None:
    means = distributed.mean_over_ranks(torch.stack([value.detach().float() for value in metrics.values()]))
    if tracker is None:
        return
    values = dict(zip(metrics, means.tolist(), strict=True))
    tracker.scalars(step, values)
    name, value = next(iter(values.items()))
    bar.set_postfix({name.split("/")[-1]: f"{value:.4g}"}, refresh=False)
