"""The demo's training in fp32, bf16 and fp16: `python -m benchmarks.precision`; an hour of two cores that have no
instructions for bf16 and fp16.

Both stages of the demo, 200 steps each on its own data set, through the programs themselves; the same seeds and
batches. What is compared is what the runs logged.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import write_results

OUTPUT = Path(__file__).parent / "results" / "precision.json"
PRECISIONS = ("fp32", "bf16", "fp16")
NUM_STEPS, NUM_LAST = 200, 20
WATCHED = {"vqgan": ("loss/reconstruction", "loss/discriminator", "codebook/perplexity"), "commit": ("loss/total",)}
Lines = list[dict[str, float]]


def main() -> None:
    """Runs everything and writes results/precision.json."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        prepare(root)
        found = {precision: train_both(root, precision) for precision in PRECISIONS}
    figures = {
        f"{stage}, {metric}": compare([found[precision][stage] for precision in PRECISIONS], metric)
        for stage, metrics in WATCHED.items()
        for metric in metrics
    }
    note = (
        f"Mean of the last {NUM_LAST} of {NUM_STEPS} steps; in brackets the median over all steps of the relative "
        "difference from fp32. Steps with a GAN are the second half of the VQGAN's."
    )
    write_results(OUTPUT, "Precision", "python -m benchmarks.precision", {"The demo's runs": figures}, note)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


def prepare(root: Path) -> None:
    """Data set, and the tokens of a tokenizer trained in fp32."""
    run("data_prep.moving_shapes", f"output={root}/videos", "videos_per_class=12")
    run("data_prep.list_videos", f"videos={root}/videos", f"output={root}/manifest", "min_frames=8")
    run("data_prep.write_shards", f"manifest={root}/manifest/manifest.jsonl", f"output={root}/shards", "size_px=32",
        "encoding=raw", "videos_per_shard=16")  # fmt: skip
    train_vqgan(root, "fp32")
    run("magvit_scale.precompute_tokens", "configs/precompute/demo.yaml", f"tokenizer={root}/vqgan_fp32/export",
        f"clips.shards={root}/shards", f"output={root}/tokens")  # fmt: skip


def train_both(root: Path, precision: str) -> dict[str, Lines]:
    """What both stages logged."""
    folder = root / f"vqgan_{precision}"
    if not folder.exists():
        train_vqgan(root, precision)
    tokens = [f"tokens={root}/tokens", f"tokenizer={root}/vqgan_fp32/export"]
    train("train_commit", "configs/commit/demo.yaml", root / f"commit_{precision}", precision, *tokens)
    return {stage: read(root / f"{stage}_{precision}") for stage in WATCHED}


def train_vqgan(root: Path, precision: str) -> None:
    """Stage 1, from random weights."""
    start = f"loss.adversarial_start={NUM_STEPS // 2}"
    folder = root / f"vqgan_{precision}"
    train("train_vqgan", "configs/vqgan/demo_3d.yaml", folder, precision, f"clips.shards={root}/shards", start)


def train(program: str, config: str, folder: Path, precision: str, *more: str) -> None:
    """One run that logs every step."""
    every = [f"run.{name}={NUM_STEPS}" for name in ("steps", "checkpoint_every", "sample_every")]
    run(f"magvit_scale.{program}", config, f"run.folder={folder}", f"run.precision={precision}", "run.log_every=1",
        *every, *more)  # fmt: skip


def run(program: str, *arguments: str) -> None:
    """A process of its own."""
    sys.stderr.write(f"{program} {' '.join(arguments)}\n")
    code = f"import {program} as program, sys; program.main(sys.argv[1:])"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *arguments], check=True, stderr=subprocess.DEVNULL)


def read(folder: Path) -> Lines:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def compare(runs: list[Lines], metric: str) -> dict[str, str]:
    """One row: a figure for each precision."""
    values = [[line[metric] for line in lines if metric in line] for lines in runs]
    found = {}
    for precision, own in zip(PRECISIONS, values, strict=True):
        last = statistics.mean(own[-NUM_LAST:])
        away = statistics.median(abs(a - b) / abs(b) for a, b in zip(own, values[0], strict=True))
        found[precision] = f"{last:.4g}" if precision == "fp32" else f"{last:.4g} ({away:.1e})"
    return found


if __name__ == "__main__":
    main()
