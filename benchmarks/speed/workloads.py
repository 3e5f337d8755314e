"""What our models do without training: tokenize, detokenize, a transformer's forward, COMMIT sampling."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.speed.figures import Built, Workload
from benchmarks.speed.plan import Arithmetic, Plan, Shape
from benchmarks.speed.timing import Work
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import TransformerConfig
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.vqgan.autoencoder import VQGAN


def inference(plan: Plan, arithmetic: Arithmetic, device: torch.device) -> list[Workload]:
    """The figures of one arithmetic."""
    frames, small = plan.clip[0] * plan.clips, words(plan.small_clip)
    given = (plan, arithmetic, device)
    return [
        Workload("tokenize", arithmetic, plan.clips, words(plan.clip), partial(_tokenize, *given), frames),
        Workload("detokenize", arithmetic, plan.clips, words(plan.clip), partial(_detokenize, *given), frames),
        Workload("transformer forward", arithmetic, plan.sequences, words(latents_of(plan, plan.clip)),
                 partial(_predict, *given)),
        Workload("COMMIT sampling, 12 steps and detokenize", arithmetic, plan.samples, small,
                 partial(_sample, *given), plan.small_clip[0] * plan.samples),
    ]  # fmt: skip


def words(shape: Shape) -> str:
    """A shape for the table."""
    return " x ".join(map(str, shape))


def latents_of(plan: Plan, clip: Shape) -> Shape:
    """(t, h, w) of the latents of a clip of (t, h, w)."""
    with torch.device("meta"):
        factors = VQGAN(plan.vqgan).downsample
    t, h, w = (side // factor for side, factor in zip(clip, factors, strict=True))
    return t, h, w


def transformer_config(plan: Plan, clip: Shape) -> TransformerConfig:
    """The plan's transformer, for the latents of a clip."""
    return replace(plan.transformer, latent_shape=latents_of(plan, clip))


def built(networks: Sequence[nn.Module], arithmetic: Arithmetic, device: torch.device, plain: Work) -> Built:
    """Inference as it is: eager, under autocast for bf16, without gradients."""

    @torch.no_grad()
    def work() -> Any:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=arithmetic == "bf16"):
            return plain()

    return Built({"plain": work}, count_parameters(networks))


def count_parameters(networks: Sequence[nn.Module]) -> int:
    """Of all of them."""
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def _tokenize(plan: Plan, arithmetic: Arithmetic, device: torch.device) -> Built:
    model = VQGAN(plan.vqgan).to(device).eval()
    clip = torch.rand(plan.clips, 3, *plan.clip, device=device)
    return built([model.encoder, model.quantizer], arithmetic, device, lambda: model.tokenize(clip))


def _detokenize(plan: Plan, arithmetic: Arithmetic, device: torch.device) -> Built:
    model = VQGAN(plan.vqgan).to(device).eval()
    ids = torch.randint(plan.vqgan.codebook_size, (plan.clips, *latents_of(plan, plan.clip)), device=device)
    return built([model.decoder, model.quantizer], arithmetic, device, lambda: model.detokenize(ids))


def _predict(plan: Plan, arithmetic: Arithmetic, device: torch.device) -> Built:
    model = CommitTransformer(transformer_config(plan, plan.clip)).to(device).eval()
    sequence = torch.randint(plan.vqgan.codebook_size, (plan.sequences, len(model.position.weight)), device=device)
    return built([model], arithmetic, device, lambda: model.latent_logits(sequence))


def _sample(plan: Plan, arithmetic: Arithmetic, device: torch.device) -> Built:
    tokenizer, config = VQGAN(plan.vqgan).to(device).eval(), transformer_config(plan, plan.small_clip)
    transformer = CommitTransformer(config).to(device).eval()
    pipeline = MagvitPipeline(tokenizer, transformer)
    networks = [transformer, tokenizer.decoder, tokenizer.quantizer]
    return built(networks, arithmetic, device, lambda: pipeline("CG", label=0, num_clips=plan.samples).clips)
