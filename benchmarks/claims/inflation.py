"""A 3D tokenizer from an inflated 2D one and from nothing: `python -m benchmarks.claims.inflation`.

MAGVIT section 3.1, tables 7 and 14. Every mode gets the same learning rates, schedule, batches and steps; the 2D
network's own training is not counted.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.claims.demo import ClaimsConfig, Demo, open_demo
from benchmarks.claims.measures import load_clips
from benchmarks.claims.points import Figures, Point, compute, write_claim
from magvit_scale import inflate, train_vqgan
from magvit_scale.config import VQGANConfig, parse, refusals_end_the_program
from magvit_scale.export import export_run
from magvit_scale.metrics.reconstruction import ReconstructionScores, mean_image
from magvit_scale.pretrained import hash_model, load_config
from magvit_scale.vqgan.autoencoder import VQGAN

MODES = ("central", "average", "none")
RATES = (5e-4, 2e-3)
"""The demo's 3D stage has the first."""
NUM_CLIPS = 48
COMMON = ["loss.adversarial_start=1000000000", "loss.ema_decay=0.9", "optim.warmup_steps=25", "run.sample_every=0"]
"""No discriminator; an average of some ten steps, so that a curve shows where training is."""


def main(argv: Sequence[str] | None = None) -> None:
    """Trains in every mode at every rate with every seed, and writes results/inflation.json."""
    config = parse(ClaimsConfig, argv)
    demo = open_demo(config.root)
    points = {"mean_image": Point({"num_clips": NUM_CLIPS}, lambda folder: examine_mean_image(demo))}
    for rate in RATES:
        for mode in MODES:
            for seed in config.seeds:
                points[f"{mode}_{rate:g}_{seed}"] = inflation_point(config, demo, mode, rate, seed)
    write_claim(Path(config.results), "inflation", "Inflation", compute(points, Path(config.output)))


def inflation_point(config: ClaimsConfig, demo: Demo, mode: str, rate: float, seed: int) -> Point:
    """Trains one tokenizer, and looks at it on the way."""
    every = [f"run.{name}={config.examine_every}" for name in ("checkpoint_every", "keep_every")]
    arguments = [*COMMON, *every, f"run.steps={config.vqgan_steps}", f"run.seed={seed}", f"optim.learning_rate={rate}"]
    settings: Figures = {
        "mode": mode,
        "rate": rate,
        "seed": seed,
        "arguments": arguments,
        "num_clips": NUM_CLIPS,
        "frames_model": hash_model(demo.frames_model),
    }
    return Point(settings, partial(train_and_examine, config, demo, mode, seed, arguments))


def train_and_examine(
    config: ClaimsConfig, demo: Demo, mode: str, seed: int, arguments: list[str], folder: Path
) -> Figures:
    """Held-out scores by step, of the averaged weights."""
    run, start = folder / "run", folder / "start"
    init = [] if mode == "none" else [f"init={start}"]
    if init:
        shape = ["temporal_downsample=[true,false,false]", "num_frames=8", "size_px=32"]
        inflate.main([f"source={demo.frames_model}", f"output={start}", f"mode={mode}", *shape])
    where = [f"run.folder={run}", f"clips.shards={demo.shards}"]
    train_vqgan.main(["configs/vqgan/demo_3d.yaml", *arguments, *where, *init])
    clips, _ = load_clips(demo, NUM_CLIPS)
    scores = {"0": examine(VQGAN.from_pretrained(start) if init else untrained(run / "export", seed), clips)}
    for step in range(config.examine_every, config.vqgan_steps + 1, config.examine_every):
        export = export_run(run, step, folder / "export")
        scores[str(step)] = examine(VQGAN.from_pretrained(export), clips)
    return {"by_step": scores}


def untrained(export: Path, seed: int) -> VQGAN:
    """The random network that a run without inflation starts from."""
    torch.manual_seed(seed)
    return VQGAN(load_config(VQGANConfig, export, "VQGAN"))


@torch.no_grad()
def examine(network: VQGAN, clips: Tensor) -> dict[str, float]:
    """Scores of the reconstructions."""
    scores = ReconstructionScores()
    scores.update(clips, network.eval()(clips)[0].clamp(0, 1))
    return scores.result()


def examine_mean_image(demo: Demo) -> Figures:
    """Scores of the baseline that knows no motion."""
    clips, _ = load_clips(demo, NUM_CLIPS)
    scores = ReconstructionScores()
    scores.update(clips, mean_image(clips))
    return scores.result()


if __name__ == "__main__":
    with refusals_end_the_program("benchmarks.claims.inflation"):
        main()
