"""The one training loop: resume, step, log, sample, save, until the last step, a signal or trouble. It knows no model,
loss or optimiser.

A run may be killed in any line of this file. What it has is what its newest complete checkpoint has; all that was
logged after that is cut away and comes again, the same to the bit.
"""

import time
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from magvit_scale.config import Refusal, RunConfig, to_yaml
from magvit_scale.progress import progress_bar
from magvit_scale.training import checkpoint, distributed
from magvit_scale.training.flops import count_flops
from magvit_scale.training.health import NotFiniteError
from magvit_scale.training.peak import peak_flops
from magvit_scale.training.profiling import Profile
from magvit_scale.training.ranks import Ranks
from magvit_scale.training.recovery import act, history, resume
from magvit_scale.training.retention import Retention
from magvit_scale.training.run import End, Metrics, Run, TrainingConfig, Work
from magvit_scale.training.signals import StopRequest
from magvit_scale.training.throughput import Throughput, progress_words
from magvit_scale.training.tracking import Tracker, claim_run_folder, refuse_other_config, versions
from magvit_scale.training.watchdog import Watchdog


def train(config: TrainingConfig, ranks: Ranks, work: Work) -> None:
    """Trains from the newest complete checkpoint of the run folder, or from the start. Collective: every rank must
    call.

    Raises:
        Refusal: the folder is of another config or data set, or a rule of `config.health` stops the run.
        SystemExit: stopped by a signal, everything saved; see `signals`.
    """
    folder = Path(config.run.folder)
    refuse_other_config(folder, config)
    if ranks.is_main:
        claim_run_folder(folder, config)
    writer = checkpoint.Writer(folder / "checkpoints", work.state, ranks, distributed.barrier, Retention.of(config.run))
    with StopRequest() as stop, closing(writer):
        with _watchdog(config.run, ranks, folder) as watchdog, watchdog.explains_lost_peers():
            run = Run(config, folder, ranks, work, writer, stop, watchdog)
            while (end := _train_from_checkpoint(run)) == "rolled back":
                pass
            watchdog.progress(config.run.steps, "end")
            writer.wait()
            if ranks.is_main and end == "done":
                work.finish()
            distributed.barrier()
        if end == "stopped":
            stop.end()


def _train_from_checkpoint(run: Run) -> End:
    settings, work, watchdog = run.config.run, run.work, run.watchdog
    start = resume(run)
    tracker = _tracker(run, start) if run.ranks.is_main else None
    health, skipped = history(run, tracker, start)
    throughput = _meter(run, tracker, start)
    batches = work.batches(start + skipped)
    with (
        closing(tracker) if tracker else nullcontext(),
        progress_bar(run.folder.name, settings.steps, unit="step", initial=start, is_shown=tracker is not None) as bar,
        Profile(run.folder / "profile", run.ranks.rank, settings.profile_steps, start) as profile,
    ):
        for step in range(start, settings.steps):
            done, is_last = step + 1, step + 1 == settings.steps
            watchdog.progress(step, "data")
            with throughput.waiting():
                batch = next(batches)
            watchdog.progress(step, "step")
            try:
                metrics = _update(run, batch, step, throughput)
            except NotFiniteError as error:
                return act(run, [health.judge_not_finite(step, error)], tracker)
            bar.update(1)
            profile.step_done()
            is_stopping = _agree(run) and not is_last
            if done % settings.log_every == 0 or is_last:
                found = health.observe(done, _log(run, metrics, done, throughput, tracker, bar))
                if (end := act(run, found, tracker)) != "done":
                    return end
                if tracker and done - start <= settings.log_every and (waiting := health.waiting()):
                    tracker.note(waiting)
            if settings.sample_every and (done % settings.sample_every == 0 or is_last):
                watchdog.progress(step, "sample")
                with throughput.paused():
                    work.sample(tracker, done)
            if done % settings.checkpoint_every == 0 or is_last or is_stopping:
                watchdog.progress(step, "checkpoint")
                with throughput.paused():
                    _save(run, done, skipped, tracker)
            if is_stopping:
                if tracker:
                    tracker.note(f"stopped by {run.stop.describe()} after step {done}; the same command continues")
                return "stopped"
    return "done"


def _watchdog(settings: RunConfig, ranks: Ranks, folder: Path) -> Watchdog:
    return Watchdog(
        ranks.rank,
        ranks.world_size,
        distributed.tell_number,
        dead_after_s=settings.dead_after_s,
        hang_after_s=settings.hang_after_s,
        report=partial(_append, folder / "log.txt"),
    )


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def _tracker(run: Run, start: int) -> Tracker:
    tracker = Tracker(run.folder, start)
    tracker.introduce(run.config)
    return tracker


def _meter(run: Run, tracker: Tracker | None, start: int) -> Throughput:
    """Says in the log what begins, and measures it. Collective."""
    settings, ranks = run.config.run, run.ranks
    peak = peak_flops(ranks.device, settings.precision)
    if tracker:
        begun = f"step {start} of {settings.steps}, {ranks.world_size} ranks on {ranks.device.type}"
        tracker.note(begun, *run.work.notes, peak.source)
    hours_before = float(distributed.tell(str(tracker.last.get("perf/rank_hours", 0.0)) if tracker else ""))
    return Throughput(
        settings.global_batch_size,
        ranks.world_size,
        ranks.device,
        frames_per_sample=run.work.frames_per_sample,
        peak_flops=peak.flops_per_s,
        hours_before=hours_before,
    )


def _update(run: Run, batch: Any, step: int, throughput: Throughput) -> Metrics:
    """One step, counted where a step of its kind has not been yet."""
    flops: float | None = None
    if throughput.counts_next and not run.config.run.compile:
        metrics, flops = count_flops(lambda: run.work.update(batch, step))
    else:
        metrics = run.work.update(batch, step)
    throughput.step_done(metrics, flops)
    return metrics


def _agree(run: Run) -> bool:
    """Whether any rank was asked to stop. Ends all where one cannot write its part of a checkpoint. Collective."""
    is_stopping, is_unwritten = distributed.any_over_ranks(run.stop.is_requested, run.writer.has_failed)
    if is_unwritten:
        run.writer.wait()
        raise Refusal("another rank could not write its part of a checkpoint; its log says why")
    return is_stopping


def _log(
    run: Run, metrics: Metrics, step: int, throughput: Throughput, tracker: Tracker | None, bar: Any
) -> dict[str, float]:
    """Means over ranks of what a step gave; those of how fast it was go into the files only. Collective."""
    speed = throughput.metrics()
    own = [*map(float, metrics.values()), *speed.values()]
    means = distributed.mean_over_ranks(torch.tensor(own, device=run.ranks.device)).tolist()
    values, speeds = dict(zip(metrics, means, strict=False)), dict(zip(speed, means[len(metrics) :], strict=True))
    if tracker:
        tracker.scalars(step, values | speeds)
        name, value = next(iter(values.items()))
        bar.set_postfix({name.split("/")[-1]: f"{value:.4g}"} | progress_words(speeds), refresh=False)
    return values


def _save(run: Run, step: int, skipped: int, tracker: Tracker | None) -> None:
    """Begins a checkpoint, after all that was logged up to it is in the files. Collective."""
    if tracker:
        tracker.flush()
    about = {
        "step": step,
        "samples": (step + skipped) * run.config.run.global_batch_size,
        "data": run.work.data,
        "world_size": run.ranks.world_size,
        "versions": versions(),
        "metrics": tracker.last if tracker else {},
    }
    run.writer.save(about, to_yaml(run.config))
