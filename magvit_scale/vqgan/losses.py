"""Stage 1's adversarial terms, one function each (spec section 4.3). Logits: high means real."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.vqgan.twice_differentiable import gradient_of_input


def compute_generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss of the generator: mean softplus(-D(fake))."""
    return F.softplus(-fake_logits.float()).mean()


def compute_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Non-saturating loss of the discriminator: mean softplus(-D(real)) + mean softplus(D(fake))."""
    return F.softplus(-real_logits.float()).mean() + F.softplus(fake_logits.float()).mean()


def compute_r1_penalty(real_logits: Tensor, real_clip: Tensor) -> Tensor:
    """Mean over clips of the squared norm of dD/dclip, frames summed, without a half.

    Args:
        real_logits: the discriminator's answer to `real_clip`, its graph kept.
        real_clip: 'b c t h w', requires_grad.
    """
    gradient = gradient_of_input(real_logits.float().sum(), real_clip, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3, 4)).mean()


class LeCam(nn.Module):
    """LeCam regularisation with its two running means as buffers, so that a checkpoint carries them.

    Each running mean is of D's logits over the global batch; `update` takes means already reduced over ranks.
    """

    real_mean: Tensor
    fake_mean: Tensor

    def __init__(self, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """relu(D(real) - E[fake])^2 + relu(E[real] - D(fake))^2 of the batch means, against the running means E."""
        real, fake = real_logits.float().mean(), fake_logits.float().mean()
        return F.relu(real - self.fake_mean).square() + F.relu(self.real_mean - fake).square()

    @torch.no_grad()
    def update(self, real_mean: Tensor, fake_mean: Tensor) -> None:
        """Moves the running means, after the step (spec section 4.3)."""
        self.real_mean.lerp_(real_mean.detach(), 1 - self.decay)
        self.fake_mean.lerp_(fake_mean.detach(), 1 - self.decay)
