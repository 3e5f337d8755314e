"""How generator and discriminator stand against each other."""

import torch
from torch import Tensor

from magvit_scale.vqgan.losses import LeCam


@torch.no_grad()
def discriminator_health(real_logits: Tensor, fake_logits: Tensor, lecam: LeCam) -> dict[str, Tensor]:
    """Scalars by TensorBoard name, of this rank's part of a batch: their means over ranks are those of the batch.

    Args:
        real_logits: the discriminator's answers to real clips, of any shape; high means real.
        fake_logits: its answers to generated ones.
        lecam: its running means are over all ranks already.

    Returns:
        gan/accuracy_real: share of real logits above 0.
        gan/accuracy_fake: share of fake logits below 0.
        gan/accuracy: the mean of both: 1/2 for one answer to everything, 1 where the discriminator wins.
        gan/logits_real, gan/logits_fake: means.
        gan/lecam_gap: running mean of the real logits minus that of the fake ones.
    """
    accuracy_real = (real_logits > 0).float().mean()
    accuracy_fake = (fake_logits < 0).float().mean()
    return {
        "gan/accuracy_real": accuracy_real,
        "gan/accuracy_fake": accuracy_fake,
        "gan/accuracy": (accuracy_real + accuracy_fake) / 2,
        "gan/logits_real": real_logits.float().mean(),
        "gan/logits_fake": fake_logits.float().mean(),
        "gan/lecam_gap": lecam.real_mean - lecam.fake_mean,
    }
