"""Trained networks made ready for use: in which numbers they compute, and whether they are compiled."""

import torch

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import ComputeConfig
from magvit_scale.precision import AUTOCAST_DTYPES, compute_in
from magvit_scale.vqgan.autoencoder import VQGAN


def prepare_tokenizer(tokenizer: VQGAN, compute: ComputeConfig, device: torch.device) -> VQGAN:
    """The tokenizer itself, on its device and computing as asked; its quantiser in float32."""
    for network in (tokenizer.encoder, tokenizer.decoder):
        compute_in(network, compute.precision, device)
    if compute.compile:
        tokenizer.compile()
    return tokenizer.to(device)


def prepare_transformer(
    transformer: CommitTransformer, compute: ComputeConfig, device: torch.device
) -> CommitTransformer:
    """The same of a transformer; compiled on a GPU it replays CUDA graphs, one for each shape.

    In 16 bits its weights are too, and its sums and norms: nothing is converted in each decoding step, and what a step
    reads and writes is less than a third of autocast's (docs/benchmarks.md).
    """
    if compute.compile:
        transformer.compile(mode="reduce-overhead")
    return transformer.to(device, AUTOCAST_DTYPES.get(compute.precision))
