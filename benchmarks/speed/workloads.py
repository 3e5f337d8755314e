"""What our models do without training: tokenize, detokenize, a transformer's forward, COMMIT sampling."""

from dataclasses import replace
from functools import partial

import torch

from benchmarks.speed.figures import Built, Workload, count_parameters, words
from benchmarks.speed.peers import official
from benchmarks.speed.plan import Plan, Setting, Shape
from benchmarks.speed.timing import inferring
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import TransformerConfig
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.vqgan.autoencoder import VQGAN


def inference(setting: Setting) -> list[Workload]:
    """The figures of one arithmetic."""
    plan = setting.plan
    frames, small = plan.clip[0] * plan.clips, words(plan.small_clip)
    rows = (
        ("tokenize", plan.clips, words(plan.clip), _tokenize, frames),
        ("detokenize", plan.clips, words(plan.clip), _detokenize, frames),
        ("transformer forward", plan.sequences, words(latents_of(plan, plan.clip)), _predict, 0),
        ("COMMIT sampling, 12 steps and detokenize", plan.samples, small, _sample, plan.small_clip[0] * plan.samples),
    )
    return [
        Workload(name, setting.arithmetic, batch, shape, partial(build, setting), frames)
        for name, batch, shape, build, frames in rows
    ]


def latents_of(plan: Plan, clip: Shape) -> Shape:
    """(t, h, w) of the latents of a clip of (t, h, w)."""
    with torch.device("meta"):
        factors = VQGAN(plan.vqgan).downsample
    t, h, w = (side // factor for side, factor in zip(clip, factors, strict=True))
    return t, h, w


def transformer_config(plan: Plan, clip: Shape) -> TransformerConfig:
    """The plan's transformer, for the latents of a clip."""
    return replace(plan.transformer, latent_shape=latents_of(plan, clip))


def _tokenize(setting: Setting) -> Built:
    plan, device = setting.plan, setting.device
    model, clip = VQGAN(plan.vqgan).to(device).eval(), torch.rand(plan.clips, 3, *plan.clip, device=device)
    plain = inferring(lambda: model.tokenize(clip), setting)
    size = count_parameters([model.encoder, model.quantizer])
    return Built({"plain": plain, **official("tokenize", setting)}, size)


def _detokenize(setting: Setting) -> Built:
    plan, device = setting.plan, setting.device
    model = VQGAN(plan.vqgan).to(device).eval()
    ids = torch.randint(plan.vqgan.codebook_size, (plan.clips, *latents_of(plan, plan.clip)), device=device)
    plain = inferring(lambda: model.detokenize(ids), setting)
    size = count_parameters([model.decoder, model.quantizer])
    return Built({"plain": plain, **official("detokenize", setting)}, size)


def _predict(setting: Setting) -> Built:
    plan, device = setting.plan, setting.device
    model = CommitTransformer(transformer_config(plan, plan.clip)).to(device).eval()
    sequence = torch.randint(plan.vqgan.codebook_size, (plan.sequences, len(model.position.weight)), device=device)
    return Built({"plain": inferring(lambda: model.latent_logits(sequence), setting)}, count_parameters([model]))


def _sample(setting: Setting) -> Built:
    plan, device = setting.plan, setting.device
    tokenizer = VQGAN(plan.vqgan).to(device).eval()
    transformer = CommitTransformer(transformer_config(plan, plan.small_clip)).to(device).eval()
    pipeline = MagvitPipeline(tokenizer, transformer)
    plain = inferring(lambda: pipeline("CG", label=0, num_clips=plan.samples).clips, setting)
    return Built({"plain": plain}, count_parameters([transformer, tokenizer.decoder, tokenizer.quantizer]))
