"""A whole pipeline small enough for unit tests, and clips for it."""

from dataclasses import replace

import torch
from torch import Tensor

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import DecodingConfig, TransformerConfig, VQGANConfig
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.vqgan.autoencoder import VQGAN

CLIP, LATENT = (4, 16, 16), (2, 4, 4)
FEW_STEPS = DecodingConfig(num_steps=3)
TOKENIZER = VQGANConfig(
    base_channels=8,
    channel_multipliers=(1, 1, 1),
    num_res_blocks=1,
    temporal_downsample=(True, False),
    embedding_dim=4,
    codebook_size=16,
    num_groups=4,
)
TRANSFORMER = TransformerConfig(
    num_layers=1, hidden_size=16, mlp_dim=16, num_heads=2, latent_shape=LATENT, codebook_size=16, num_classes=3
)


def build(**changes: object) -> MagvitPipeline:
    torch.manual_seed(0)
    config = replace(TRANSFORMER, **changes)  # type: ignore[arg-type]
    tokenizer, transformer = VQGAN(TOKENIZER).eval(), CommitTransformer(config).eval()
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # fresh weights are nearly uniform: nothing would depend on anything
    return MagvitPipeline(tokenizer, transformer)


def random_clip(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, *CLIP, generator=torch.Generator().manual_seed(seed))
