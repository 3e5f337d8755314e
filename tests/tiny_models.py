"""The three networks as small as they get with every kind of layer in them, and a loss through all of each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import DiscriminatorConfig, TransformerConfig, VQGANConfig
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.losses import compute_discriminator_loss, compute_r1_penalty

SHAPE = (4, 8, 8)
Loss = Callable[[nn.Module], Tensor]


@contextmanager
def without_onednn() -> Iterator[None]:
    """oneDNN's bfloat16 convolutions have random weight gradients on CPUs without bfloat16 instructions."""
    before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def random_clip(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, *SHAPE, generator=torch.Generator().manual_seed(seed))


def vqgan(ndim: int = 3) -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(
        VQGANConfig(
            ndim=ndim,
            base_channels=8,
            channel_multipliers=(1, 2, 2),
            num_res_blocks=2,
            embedding_dim=4,
            temporal_downsample=(True, False),
            codebook_size=16,
            num_groups=4,
        )
    )


def discriminator(ndim: int = 3) -> Discriminator:
    torch.manual_seed(0)
    config = DiscriminatorConfig(ndim=ndim, base_channels=8, channel_multipliers=(1, 2, 2), clip_shape=SHAPE)
    return Discriminator(config)


def transformer() -> CommitTransformer:
    torch.manual_seed(0)
    return CommitTransformer(
        TransformerConfig(
            num_layers=5,
            hidden_size=16,
            mlp_dim=24,
            num_heads=4,
            latent_shape=(2, 2, 3),
            codebook_size=10,
            num_classes=3,
            dropout=0.1,
        )
    )


def reconstruct(model: nn.Module) -> Tensor:
    clip = random_clip()
    reconstruction, quantized = model(clip)
    losses = quantized.commitment_loss + quantized.codebook_loss + 0.1 * quantized.entropy_loss
    return (reconstruction - clip).square().mean() + losses


def judge(model: nn.Module) -> Tensor:
    real_logits, fake_logits = model(torch.cat([random_clip(0), random_clip(1)])).chunk(2)
    return compute_discriminator_loss(real_logits, fake_logits)


def penalise(model: nn.Module) -> Tensor:
    """With r1, which goes backward twice through the same graph."""
    real = random_clip().requires_grad_()
    return judge(model) + 10 * compute_r1_penalty(model(real), real)


def predict(model: nn.Module) -> Tensor:
    torch.manual_seed(7)  # of dropout
    sequence = torch.randint(0, 10, (2, 14), generator=torch.Generator().manual_seed(0))
    return model.latent_logits(sequence).logsumexp(-1).mean()
