"""Quality and cost by the number of decoding steps: `python -m benchmarks.claims.decoding`.

MAGVIT section 3.3 and table 6. One trained transformer, the demo's; the seeds are those of the sampling.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.claims.demo import ClaimsConfig, Demo, open_demo
from benchmarks.claims.measures import compare_clips, generate, load_clips
from benchmarks.claims.points import Figures, Point, compute, write_claim
from benchmarks.claims.transformers import baselines_point
from benchmarks.measure import cpu_seconds
from magvit_scale.config import DecodingConfig, parse, refusals_end_the_program
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.pretrained import hash_model


def main(argv: Sequence[str] | None = None) -> None:
    """Generates with every number of steps and every seed, and writes results/decoding.json."""
    config = parse(ClaimsConfig, argv)
    demo = open_demo(config.root)
    points = {"baselines": baselines_point(config, demo)}
    for steps in config.decoding_steps:
        points |= {f"steps{steps}_{seed}": decoding_point(config, demo, steps, seed) for seed in config.seeds}
    write_claim(Path(config.results), "decoding", "Decoding", compute(points, Path(config.output)))


def decoding_point(config: ClaimsConfig, demo: Demo, steps: int, seed: int) -> Point:
    """Every task's clips in so many steps."""
    settings: Figures = {
        "steps": steps,
        "seed": seed,
        "asked": list(config.tasks),
        "num_clips": config.num_clips,
        "transformer": hash_model(demo.transformer),
    }
    return Point(settings, lambda folder: examine(config, demo, steps, seed))


@torch.no_grad()
def examine(config: ClaimsConfig, demo: Demo, steps: int, seed: int) -> Figures:
    """What the clips are like, and CPU milliseconds per clip: of conditions, decoding and detokenizing."""
    pipeline = MagvitPipeline.from_pretrained(demo.tokenizer, demo.transformer)
    clips, labels = load_clips(demo, config.num_clips)
    make = partial(generate, pipeline, clips, labels, decoding=DecodingConfig(num_steps=steps), seed=seed)
    start = cpu_seconds()
    made = {task: make(task=task) for task in config.tasks}
    spent = 1000 * (cpu_seconds() - start) / (len(made) * len(clips))
    return {
        "generated": {task: compare_clips(clips, made[task], task) for task in made},
        "cpu_ms_per_clip": spent,
    }


if __name__ == "__main__":
    with refusals_end_the_program("benchmarks.claims.decoding"):
        main()
