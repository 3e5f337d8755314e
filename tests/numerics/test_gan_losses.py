"""Stage 1's losses, one by one, against the official functions."""

import numpy as np
import pytest
import torch

from magvit_scale.vqgan.losses import LeCam, compute_discriminator_loss, compute_generator_loss
from magvit_scale.vqgan.quantizer import compute_entropy_loss
from tests.numerics.official import Agree

REASON = "float32 means"


def test_adversarial_losses(golden, agree: Agree) -> None:
    arrays = golden("losses.npz")
    real, fake = torch.from_numpy(arrays["real_logit"]), torch.from_numpy(arrays["fake_logit"])
    for what, found, name in (
        ("adversarial loss of D", compute_discriminator_loss(real, fake), "discriminator_loss"),
        ("adversarial loss of G", compute_generator_loss(fake), "generator_loss"),
    ):
        expected = arrays[f"{name}/non-saturating"]
        agree("GAN losses", what, found, expected, tolerance=1e-6, relative=True, reason=REASON)


def test_lecam(golden, agree: Agree) -> None:
    arrays = golden("losses.npz")
    found = []
    for real, fake, real_mean, fake_mean in arrays["lecam/inputs_real_fake_emareal_emafake"].tolist():
        lecam = LeCam(0.999)
        lecam.real_mean.fill_(real_mean)
        lecam.fake_mean.fill_(fake_mean)
        found.append(lecam(torch.tensor([real]), torch.tensor([fake])).item())
    agree("GAN losses", "LeCam", np.array(found), arrays["lecam/loss"], tolerance=1e-6, relative=True, reason=REASON)


@pytest.mark.parametrize("temperature", ["0.01", "1.0"])
def test_entropy_loss(temperature: str, golden, agree: Agree) -> None:
    arrays, key = golden("losses.npz"), f"entropy/softmax/T{temperature}"
    affinity = torch.from_numpy(arrays["entropy/affinity"]).requires_grad_()
    loss = compute_entropy_loss(affinity.flatten(0, -2) / float(temperature))
    loss.backward()
    reason = "float32: two entropies of almost the same size are subtracted"
    agree("quantizer", "entropy loss", loss, arrays[f"{key}/loss"], tolerance=1e-5, relative=True, reason=reason)
    reason = "float32, divided by the temperature"
    gradient = affinity.grad
    agree("quantizer", "its gradient", gradient, arrays[f"{key}/grad"], tolerance=1e-4, relative=True, reason=reason)
