"""What our models do without training: tokenize, detokenize, a transformer's forward, COMMIT sampling."""

from dataclasses import replace
from functools import partial

import torch

from benchmarks.speed.figures import Built, Workload, count_parameters, words
from benchmarks.speed.official import official_detokenize, official_logits, official_tokenize
from benchmarks.speed.plan import Plan, Setting, Shape
from benchmarks.speed.timing import Work, inferring
from benchmarks.torchs_own import torchs_own_layers
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import TransformerConfig
from magvit_scale.inference import prepare_tokenizer, prepare_transformer
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


def by_paths(ours: Work, setting: Setting) -> dict[str, Work]:
    """The plain path, and the fast one where there is one, of the same networks."""
    paths = {"plain": torchs_own_layers()(ours)}
    return paths | {"fast": ours} if setting.has_fast_path else paths


def _tokenizer(setting: Setting) -> VQGAN:
    return prepare_tokenizer(VQGAN(setting.plan.vqgan).eval(), setting.compute, setting.device)


def _transformer(setting: Setting, clip: Shape) -> CommitTransformer:
    model = CommitTransformer(transformer_config(setting.plan, clip)).eval()
    return prepare_transformer(model, setting.compute, setting.device)


def _tokenize(setting: Setting) -> Built:
    plan = setting.plan
    model, clip = _tokenizer(setting), torch.rand(plan.clips, 3, *plan.clip, device=setting.device)
    paths = by_paths(inferring(lambda: model.tokenize(clip), setting), setting)
    size = count_parameters([model.encoder, model.quantizer])
    return Built(paths | official_tokenize(model, clip, setting), size)


def _detokenize(setting: Setting) -> Built:
    plan, model = setting.plan, _tokenizer(setting)
    shape = (plan.clips, *latents_of(plan, plan.clip))
    ids = torch.randint(plan.vqgan.codebook_size, shape, device=setting.device)
    paths = by_paths(inferring(lambda: model.detokenize(ids), setting), setting)
    size = count_parameters([model.decoder, model.quantizer])
    return Built(paths | official_detokenize(model, ids, setting), size)


def _predict(setting: Setting) -> Built:
    plan, model = setting.plan, _transformer(setting, setting.plan.clip)
    shape = (plan.sequences, len(model.position.weight))
    sequence = torch.randint(plan.vqgan.codebook_size, shape, device=setting.device)
    work = inferring(lambda: model.latent_logits(sequence), setting)
    paths = by_paths(work, setting)
    return Built(paths | official_logits(model, sequence, setting), count_parameters([model]))


def _sample(setting: Setting) -> Built:
    plan, tokenizer = setting.plan, _tokenizer(setting)
    transformer = _transformer(setting, plan.small_clip)
    pipeline = MagvitPipeline(tokenizer, transformer, is_compiled=setting.compute.compile)
    work = inferring(lambda: pipeline("CG", label=0, num_clips=plan.samples).clips, setting)
    size = count_parameters([transformer, tokenizer.decoder, tokenizer.quantizer])
    # What is sampled hangs on the last digits of the logits, so the paths' clips do not compare.
    return Built(by_paths(work, setting), size, compares=False)
