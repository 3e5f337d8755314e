"""Transformers trained in several ways on the demo's tokens, and what they are asked: points that claims share."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.claims.demo import ClaimsConfig, Demo, open_demo
from benchmarks.claims.measures import (
    HeldOutTokens,
    compare_clips,
    cross_entropy_outside,
    generate,
    load_clips,
    load_tokens,
    outside_condition,
    tokens_kept,
)
from benchmarks.claims.points import Figures, Point, compute, write_claim
from magvit_scale import train_commit
from magvit_scale.commit.tasks import SPECS
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.commit.validation import draw_validation_masks
from magvit_scale.config import DecodingConfig, Task
from magvit_scale.metrics.tokens import frequency_table, table_cross_entropy
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.pretrained import hash_model
from magvit_scale.vqgan.autoencoder import VQGAN

ABLATION = "configs/commit/ablation"
VARIANTS: dict[str, list[str]] = {
    "commit": [],
    "canvas": ["model.conditioning=canvas"],
    "latent": [f"{ABLATION}/latent.yaml"],
    "prefix": [f"{ABLATION}/prefix.yaml"],
    "mask": [f"{ABLATION}/mask.yaml"],
    "mask_reconstruct": [f"{ABLATION}/mask_reconstruct.yaml"],
    "only_FP": ["tasks=[FP]"],
    "only_CG": ["tasks=[CG]"],
}
"""What differs from the demo's settings, as arguments of magvit train-commit."""
COMMON = ["run.global_batch_size=32", "optim.warmup_steps=18", "one_task_per_step=true", "run.sample_every=0",
          "run.log_every=20"]  # fmt: skip
"""One task per step is the paper's order, and the only one that `prefix` can be trained in."""


def run(config: ClaimsConfig, name: str, title: str, variants: Sequence[str]) -> None:
    """Trains and examines the variants with every seed, and writes results/NAME.json."""
    demo = open_demo(config.root)
    points = {"baselines": baselines_point(config, demo)}
    for variant in variants:
        points |= {f"{variant}_{seed}": transformer_point(config, demo, variant, seed) for seed in config.seeds}
    write_claim(Path(config.results), name, title, compute(points, Path(config.output)))


def transformer_point(config: ClaimsConfig, demo: Demo, variant: str, seed: int) -> Point:
    """Trains a variant with a seed, and asks it every task."""
    steps = [f"run.{key}={config.commit_steps}" for key in ("steps", "checkpoint_every")]
    arguments = [*COMMON, f"tasks=[{','.join(config.tasks)}]", *steps, f"run.seed={seed}", *VARIANTS[variant]]
    settings: Figures = {
        "variant": variant,
        "seed": seed,
        "arguments": arguments,
        "asked": list(config.tasks),
        "num_clips": config.num_clips,
        "tokenizer": hash_model(demo.tokenizer),
    }

    def work(folder: Path) -> Figures:
        where = [f"run.folder={folder}", f"tokens={demo.tokens('train')}", f"tokenizer={demo.tokenizer}"]
        train_commit.main(["configs/commit/demo.yaml", *sorted(arguments, key=_is_key), *where])
        return examine(config, demo, CommitTransformer.from_pretrained(folder / "export"), seed)

    return Point(settings, work)


def _is_key(argument: str) -> bool:
    return not argument.endswith(".yaml")


@torch.no_grad()
def examine(config: ClaimsConfig, demo: Demo, model: CommitTransformer, seed: int) -> Figures:
    """Cross-entropies by task, and what its clips are like; with `latent` conditioning from the canvas's tokens, which
    a user could have, and once more (`of_clip`) from the true clip's, with which it was trained.
    """
    model.eval()
    # Asked for tasks that it was not trained for too, which a pipeline refuses.
    model.config = replace(model.config, tasks=None)
    pipeline = MagvitPipeline(VQGAN.from_pretrained(demo.tokenizer), model)
    held, (clips, labels) = load_tokens(demo), load_clips(demo, config.num_clips)
    figures: Figures = {}
    for kind in ("", "_of_clip") if model.config.conditioning == "latent" else ("",):
        shows_clip = kind == "_of_clip"
        figures[f"cross_entropy{kind}"] = cross_entropies(config, model, held, shows_clip=shows_clip)
        figures[f"generated{kind}"] = {
            task: compare_clips(
                clips,
                generate(pipeline, clips, labels, task, DecodingConfig(), seed=seed, shows_clip=shows_clip),
                task,
            )
            for task in config.tasks
        }
    return figures


def cross_entropies(
    config: ClaimsConfig, model: CommitTransformer, held: HeldOutTokens, *, shows_clip: bool
) -> dict[str, dict[str, float]]:
    """Nats per masked token outside the condition, by masks and task: `all` masked, as decoding begins, or as `trained`
    on.
    """
    return {
        name: {
            task: cross_entropy_outside(model, held, task, is_masked, shows_clip=shows_clip) for task in config.tasks
        }
        for name, is_masked in validation_masks(held).items()
    }


def validation_masks(held: HeldOutTokens) -> dict[str, torch.Tensor]:
    """The two sets of masks, 'n (t h w)' bool."""
    trained = draw_validation_masks(len(held.labels), held.tokens[0, 0].numel(), seed=0)
    return {"all": torch.ones_like(trained), "trained": trained}


def baselines_point(config: ClaimsConfig, demo: Demo) -> Point:
    """What needs no transformer: canvases and reconstructions in place of generated clips, and the table of token
    frequencies per position.
    """
    settings: Figures = {
        "asked": list(config.tasks),
        "num_clips": config.num_clips,
        "tokenizer": hash_model(demo.tokenizer),
    }
    return Point(settings, lambda folder: compute_baselines(config, demo))


@torch.no_grad()
def compute_baselines(config: ClaimsConfig, demo: Demo) -> Figures:
    """Figures of the baselines, under the names that `examine` gives a model's."""
    clips, _ = load_clips(demo, config.num_clips)
    tokenizer = VQGAN.from_pretrained(demo.tokenizer)
    rebuilt = torch.cat([tokenizer(part)[0].clamp(0, 1) for part in clips.split(48)])
    found: Figures = {"canvas": {}, "reconstruction": {}, "cross_entropy": table_cross_entropies(config, demo)}
    found["tokens_kept"] = {task: tokens_kept(load_tokens(demo), task) for task in config.tasks if SPECS[task].fill}
    for task in config.tasks:
        fill = SPECS[task].fill
        found["reconstruction"][task] = compare_clips(clips, rebuilt, task)
        found["canvas"][task] = compare_clips(clips, fill(clips), task) if fill else {}
    return found


def table_cross_entropies(config: ClaimsConfig, demo: Demo) -> dict[str, dict[str, float]]:
    """As `cross_entropies`, of a table of the training tokens' frequencies per position."""
    held, known = load_tokens(demo), load_tokens(demo, "train")
    model = CommitTransformer.from_pretrained(demo.transformer)
    table = frequency_table(known.tokens[:, 0], model.codebook_size)

    def ask(task: Task, is_masked: torch.Tensor) -> float:
        where = (is_masked & outside_condition(task, model)).reshape(held.tokens[:, 0].shape)
        return table_cross_entropy(table, held.tokens[:, 0], where)

    return {name: {task: ask(task, m) for task in config.tasks} for name, m in validation_masks(held).items()}
