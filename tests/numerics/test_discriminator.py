"""The discriminators against the official classes: logits, losses, r1 and its gradient, every parameter's gradient."""

import os
from pathlib import Path

import pytest
import torch

from magvit_scale.config import VQGANLossConfig
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.flax import discriminator_leaves
from magvit_scale.vqgan.losses import compute_discriminator_loss, compute_generator_loss, compute_r1_penalty
from tests.numerics.official import (
    Agree,
    clip_of,
    flax_gradients,
    gradient_differences,
    imported,
    norm_differences,
    under,
    video_of,
)

REQUIRED = ("disc2d_blur_variant", "disc2d_ucf101", "disc3d_bair", "disc3d_bair_oddsize", "disc3d_ucf101")
FORWARD = "float32 through a dozen convolutions; the issue's bound"


def stems() -> list[str]:
    """Every discriminator of the golden folder, and those that must be there."""
    folder = os.environ.get("MAGVIT_GOLDEN_DIR")
    found = {path.stem for path in Path(folder).glob("disc[23]d_*.json")} if folder else set()
    return sorted(found.union(REQUIRED))


@pytest.mark.parametrize("stem", stems())
def test_logits_losses_and_gradients(stem: str, golden_folder, golden, golden_json, tmp_path, agree: Agree) -> None:
    ndim, arrays, facts = int(stem[4]), golden(f"{stem}.npz"), golden_json(f"{stem}.json")
    real, fake = clip_of(arrays["input_real"]).requires_grad_(), clip_of(arrays["input_fake"])
    is_blurred = facts["config"]["discriminator"].get("blur_resample", False)
    switches = ["discriminator.resample=blur"] if is_blurred else []
    switches.append(f"discriminator.clip_shape=[{','.join(str(side) for side in real.shape[2:])}]")
    out = imported(f"discriminator{ndim}d", golden_folder / f"{stem}.npz", tmp_path / "model", *switches)
    model = Discriminator.from_pretrained(out)
    name = f"discriminator {ndim}D{', blur' if is_blurred else ''}"

    real_logits, fake_logits = model(real), model(fake)
    forward = {"tolerance": 1e-4, "relative": True, "reason": FORWARD}
    agree(name, "logits of real", real_logits, arrays["real_logit"], **forward)
    agree(name, "logits of fake", fake_logits, arrays["fake_logit"], **forward)
    (slope,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    agree(name, "r1: gradient of the pixels", video_of(slope), arrays["r1_grad_x"], **forward)
    penalty = VQGANLossConfig().r1_weight * compute_r1_penalty(real_logits, real)
    adversarial = compute_discriminator_loss(real_logits, fake_logits)
    agree(name, "r1", penalty, arrays["r1_penalty"], **forward)
    agree(name, "loss of D", adversarial, arrays["d_adversarial_loss"], **forward)
    agree(name, "loss of D with r1", adversarial + penalty, arrays["d_loss"], **forward)
    generator_loss = compute_generator_loss(fake_logits)
    agree(name, "loss of G", generator_loss, arrays["g_adversarial_loss_unweighted"], **forward)

    (adversarial + penalty).backward()
    gradients, norms = flax_gradients(discriminator_leaves(model)), facts["grad_l2_norm"]
    reason = "relative to each gradient's norm; twice backward for r1; the issue's bound"
    differences = norm_differences(gradients, norms)
    agree(name, "norms of all gradients", differences, 0 * differences, tolerance=1e-3, reason=reason)
    differences = gradient_differences(gradients, under(arrays, "grad_d_loss"), norms)
    agree(name, "stored gradients", differences, 0 * differences, tolerance=1e-3, reason=reason)
