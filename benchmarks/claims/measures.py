"""What models are asked on held-out clips: cross-entropy, Frechet distance in random features (not FVD), PSNR."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import log10, nan

import torch
from einops import rearrange
from torch import Tensor

from benchmarks.claims.demo import Demo
from magvit_scale.commit.condition import build_condition, build_prompt
from magvit_scale.commit.losses import token_cross_entropy
from magvit_scale.commit.masking import assign
from magvit_scale.commit.tasks import CLIP, SPECS, canvas_of, condition_mask, latent_mask
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import ClipsConfig, DecodingConfig, Task, TransformerConfig
from magvit_scale.data.clips import held_out_clips, to_unit_range
from magvit_scale.data.token_shards import TokenShards
from magvit_scale.metrics.frechet import FeatureStatistics, RandomFeatures, frechet_distance
from magvit_scale.metrics.reconstruction import moving_mask
from magvit_scale.pipeline import MagvitPipeline

BATCH_SIZE = 48


@dataclass(frozen=True)
class HeldOutTokens:
    """All views of the test split: tokens 'n canvases t h w', labels 'n'."""

    tokens: Tensor
    labels: Tensor
    canvases: tuple[str, ...]


def load_clips(demo: Demo, num_clips: int) -> tuple[Tensor, Tensor]:
    """Held-out clips 'n 3 t h w' in [0, 1] and labels 'n'."""
    config = ClipsConfig(shards=str(demo.shards), split="test", num_frames=8, size_px=32, num_workers=0)
    batches = list(held_out_clips(config, num_clips, batch_size=BATCH_SIZE))
    clips = torch.cat([to_unit_range(batch["clip"]) for batch in batches])
    return clips, torch.cat([batch["label"] for batch in batches])


def load_tokens(demo: Demo, split: str = "test") -> HeldOutTokens:
    """Every view of every clip."""
    shards = TokenShards.open(demo.tokens(split))
    indices = [index for index in range(shards.num_clips) for _ in range(shards.views)]
    tokens, labels = shards.batch(indices, list(range(shards.views)) * shards.num_clips)
    return HeldOutTokens(tokens, labels, tuple(shards.canvases))


def outside_condition(task: Task, model: CommitTransformer) -> Tensor:
    """Bool 'n': the latents that a task does not give, which every way of conditioning has to predict."""
    return ~rearrange(latent_mask(task, model.latent_shape, model.config), "t h w -> (t h w)")


@torch.no_grad()
def cross_entropy_outside(
    model: CommitTransformer, held: HeldOutTokens, task: Task, is_masked: Tensor, *, shows_clip: bool = False
) -> float:
    """Mean nats over the masked tokens outside the condition: the same tokens for every way of conditioning, of which
    some never predict those inside.

    Args:
        model: whatever its conditioning is.
        held: what it is asked.
        task: whose condition it sees.
        is_masked: 'b n' bool.
        shows_clip: as for `generate`.
    """
    model.eval()
    canvas = held.canvases.index(CLIP if shows_clip else canvas_of(task) or CLIP)
    total, count, outside = 0.0, 0, outside_condition(task, model)
    for tokens, labels, masked in zip(
        *(part.split(BATCH_SIZE) for part in (held.tokens, held.labels, is_masked)), strict=True
    ):
        tasks, flat = [task] * len(labels), rearrange(tokens, "b canvases t h w -> b canvases (t h w)")
        targets = flat[:, 0]
        condition = build_condition(tasks, flat[:, canvas], model.latent_shape, model.config)
        inputs = assign(targets, condition, masked).inputs
        prompt = build_prompt(tasks, labels, model.config)
        logits = model.latent_logits(model.build_sequence(*prompt, inputs, condition.before))
        total += token_cross_entropy(logits, targets)[masked & outside].sum().item()
        count += int((masked & outside).sum())
    return total / count if count else nan


def generate(
    pipeline: MagvitPipeline, clips: Tensor, labels: Tensor, task: Task, decoding: DecodingConfig, *, seed: int,
    shows_clip: bool = False,
) -> Tensor:  # fmt: skip
    """A clip for every real one, 'n 3 t h w' in [0, 1].

    Args:
        pipeline: tokenizer and transformer.
        clips: real ones, 'n 3 t h w' in [0, 1].
        labels: 'n'.
        task: what is given of them.
        decoding: steps and temperatures.
        seed: of the sampling.
        shows_clip: True takes the condition's tokens from the clip itself, in which those that are given have seen what
            is not; False from the task's canvas, which a user could make.
    """
    fill = SPECS[task].fill
    made = []
    batches = zip(range(0, len(clips), BATCH_SIZE), clips.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True)
    for first, part, classes in batches:
        given = part if shows_clip else fill(part) if fill else None
        tokens = None if given is None or fill is None else pipeline.tokenizer.tokenize(given)
        own = 1000 * seed + first  # each clip has one of its own, counted on from here
        made.append(pipeline.generate_from_tokens(task, tokens, classes, len(part), decoding, seed=own).clips)
    return torch.cat(made)


def compare_clips(real: Tensor, made: Tensor, task: Task) -> dict[str, float]:
    """`frechet` in random features (not FVD) and, where the task gives something, PSNR in dB over the pixels that it
    does not give: `psnr` over all of them, `psnr_moving` over those that move.
    """
    figures = {"frechet": frechet(real, made)}
    if SPECS[task].fill is not None:
        figures["psnr"] = psnr_outside(real, made, task, torch.ones_like(real[:, :1], dtype=torch.bool))
        figures["psnr_moving"] = psnr_outside(real, made, task, moving_mask(real))
    return figures


def psnr_outside(real: Tensor, made: Tensor, task: Task, counts: Tensor) -> float:
    """PSNR in dB over the pixels of a set of clips ('n 3 t h w') that the task does not give and that count
    ('n 1 t h w' bool), the errors pooled over the whole set.
    """
    _, _, t, h, w = real.shape
    counts = counts & ~condition_mask(task, (t, h, w))
    squares = (real.double() - made.double()).square() * counts
    return -10 * log10(squares.sum().item() / (counts.sum().item() * real.shape[1]))


def frechet(real: Tensor, made: Tensor) -> float:
    """Distance between two sets of clips 'n 3 t h w' in fixed random features."""
    network = RandomFeatures()
    of_real, of_made = FeatureStatistics(network.num_features), FeatureStatistics(network.num_features)
    of_real.update(network(real))
    of_made.update(network(made))
    return frechet_distance(of_real, of_made)


def tokens_kept(held: HeldOutTokens, task: Task) -> float:
    """Share of the tokens of a task's condition that are the same in its canvas and in the clip itself."""
    given = latent_mask(task, (held.tokens.shape[2], held.tokens.shape[3], held.tokens.shape[4]), TransformerConfig())
    canvas = held.tokens[:, held.canvases.index(canvas_of(task) or CLIP)]
    return (canvas == held.tokens[:, 0])[:, given].double().mean().item()


def steps_until(target: float, values: Mapping[int, float]) -> int | None:
    """The first examined step from which a curve (step -> value) is never below `target` again; None if there is no
    such.
    """
    reached = None
    for step in sorted(values):
        reached = None if values[step] < target else step if reached is None else reached
    return reached
