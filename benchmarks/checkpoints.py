"""What a checkpoint costs: `python -m benchmarks.checkpoints`, one process, some minutes, up to 16 GB.

Transformers of the paper's sizes with their moments, under ZeRO 2. Training waits for a checkpoint until its state is
copied; a thread writes the copy. So beside the seconds there is the share of its usual speed at which the main thread
works meanwhile: a thread that held Python's lock would stop it.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.measure import write_results
from magvit_scale.commit.transformer import CommitTransformer, decayed_parameters
from magvit_scale.config import OptimConfig, RunConfig, TransformerConfig
from magvit_scale.training import checkpoint, distributed, engines
from magvit_scale.training.ranks import Ranks
from magvit_scale.training.retention import Retention, latest

OUTPUT = Path(__file__).parent / "results" / "checkpoints.json"
BASE = TransformerConfig(latent_shape=(4, 16, 16), codebook_size=1024, num_classes=101)
LARGE = replace(BASE, num_layers=24, hidden_size=1024, mlp_dim=4096, num_heads=16)
REPEATS = 3


def main() -> None:
    """Measures and writes results/checkpoints.json."""
    ranks = distributed.start()
    figures = {name: measure(config, ranks) for name, config in (("B", BASE), ("L", LARGE))}
    distributed.stop()
    note = "Wall seconds, the median of three; the disk's cache is warm, fsync is in the writing."
    groups = {"Checkpoint of a transformer, one process, ZeRO 2": figures}
    write_results(OUTPUT, "Checkpoints", "python -m benchmarks.checkpoints", groups, note)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


def measure(config: TransformerConfig, ranks: Ranks) -> dict[str, str]:
    """One size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "zero2.json").write_text('{"zero_optimization": {"stage": 2}}')
        run = RunConfig(folder=name, steps=1, global_batch_size=1, deepspeed=str(folder / "zero2.json"))
        model = CommitTransformer(config)
        engine = engines.build_engine("transformer", model, decayed_parameters(model), run, OptimConfig(), ranks)
        engine.backward(engine(torch.zeros(1, 8, dtype=torch.int64)).float().mean())
        engine.step()
        state = checkpoint.TrainingState({"transformer": engine}, {})
        writer = checkpoint.Writer(folder / "c", state, ranks, distributed.barrier, Retention(newest=1))
        alone = speed(lambda: False, 2.0)
        rounds = [save(writer, step, alone) for step in range(REPEATS)]
        newest = latest(folder / "c")
        assert newest is not None, "three were written"
        loads = [seconds(lambda: checkpoint.load(newest, state)) for _ in range(REPEATS)]
        size = sum(path.stat().st_size for path in newest.iterdir())
        engine.deepspeed.destroy()
    copied, written, shares = (sorted(values)[REPEATS // 2] for values in zip(*rounds, strict=True))
    return {
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "size": f"{size / 1e9:.2f} GB",
        "training waits": f"{copied:.2f} s",
        "until complete": f"{written:.2f} s",
        "main thread's speed meanwhile": f"{shares:.0%}",
        "resume": f"{sorted(loads)[REPEATS // 2]:.2f} s",
    }


def save(writer: checkpoint.Writer, step: int, alone: float) -> tuple[float, float, float]:
    """Seconds until the state is copied and until it is written; the main thread's speed meanwhile."""
    begun = time.perf_counter()
    copied = seconds(lambda: writer.save({"step": step}, ""))
    beside = speed(lambda: not writer.is_writing, 1000.0)
    writer.wait()
    return copied, time.perf_counter() - begun, beside / alone


def speed(is_over: Callable[[], bool], limit_s: float) -> float:
    """Small steps of Python and torch per second, as a training loop makes them."""
    matrix, count, begun = torch.rand(64, 64), 0, time.perf_counter()
    while not is_over() and time.perf_counter() - begun < limit_s:
        matrix = (matrix @ matrix).softmax(dim=0)
        count += 1
    return count / (time.perf_counter() - begun)


def seconds(function: Callable[[], None]) -> float:
    """How long a call takes."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
