"""The 2D and 3D VQGAN against the official classes: forward, tokens, losses, every parameter's gradient."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from magvit_scale.config import VQGANLossConfig
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.flax import vqgan_leaves
from magvit_scale.vqgan.step import quantizer_loss
from tests.numerics.official import (
    Agree,
    clip_of,
    flax_gradients,
    gradient_differences,
    imported,
    list_of,
    norm_differences,
    parts_of,
    under,
    video_of,
)

REQUIRED = ("vqgan2d_ucf101_mini", "vqgan3d_bair_mini", "vqgan3d_ucf101_mini")
FORWARD = "float32 through some 20 convolutions summed in another order; the issue's bound"
SAFE_MARGIN = 1e-4
"""Between the two nearest codes: below it rounding may choose either."""


def stems() -> list[str]:
    """Every VQGAN of the golden folder, and those that must be there."""
    folder = os.environ.get("MAGVIT_GOLDEN_DIR")
    found = {path.stem for path in Path(folder).glob("vqgan[23]d_*.json")} if folder else set()
    return sorted(found.union(REQUIRED))


def time_flags(vqvae: dict[str, Any]) -> list[bool]:
    """One flag per down-sampler; the official number n means that the first n are set."""
    given = vqvae["temporal_downsample"]
    count = len(vqvae["channel_multipliers"]) - 1
    return [index < given for index in range(count)] if isinstance(given, int) else given


@dataclass
class Case:
    """One official VQGAN, its answers and ours."""

    name: str
    ndim: int
    model: VQGAN
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


@pytest.fixture(scope="module", params=stems())
def case(request: pytest.FixtureRequest, golden_folder, golden, golden_json, tmp_path_factory) -> Case:
    stem, folder = request.param, tmp_path_factory.mktemp("vqgan")
    facts, ndim = golden_json(f"{stem}.json"), int(stem[5])
    vqvae = facts["config"]["vqvae"]
    official_padding = vqvae.get("custom_conv_padding" if ndim == 3 else "encoder_conv_padding")
    padding = {None: "zeros", "constant": "zeros", "reflect": "reflect"}[official_padding]
    flags = [f"model.temporal_downsample={list_of(time_flags(vqvae))}"] if ndim == 3 else []
    params = parts_of(stem, golden_folder, folder / "parts")
    out = imported(f"vqgan{ndim}d", params, folder / "model", f"model.padding={padding}", *flags)
    return Case(stem, ndim, VQGAN.from_pretrained(out), golden(f"{stem}.io.npz"), facts)


@torch.no_grad()
def test_encoder(case: Case, agree: Agree) -> None:
    latents = case.model.encode(clip_of(case.arrays["input_video"]))
    expected = case.arrays["encoder_output"]
    agree(f"VQGAN {case.ndim}D", "encoder", video_of(latents), expected, tolerance=1e-4, relative=True, reason=FORWARD)


@torch.no_grad()
def test_distances_and_tokens(case: Case, agree: Agree) -> None:
    quantizer = case.model.quantizer
    vectors = torch.from_numpy(case.arrays["encoder_output"])
    distances = quantizer.compute_distances(vectors.flatten(0, -2)).numpy()
    expected = case.arrays["distances"].reshape(distances.shape)
    what = "distances to the codebook"
    agree("quantizer", what, distances, expected, tolerance=1e-5, relative=True, reason="float32, one matrix product")
    ids = case.model.tokenize(clip_of(case.arrays["input_video"])).numpy()
    nearest = np.sort(case.arrays["distances"], axis=-1)
    is_safe = nearest[..., 1] - nearest[..., 0] > SAFE_MARGIN
    assert is_safe.any()
    reason = f"where the two nearest codes are more than {SAFE_MARGIN:.0e} apart"
    what = f"token ids from pixels, {case.ndim}D"
    agree("quantizer", what, ids[is_safe], case.arrays["token_ids"][is_safe], tolerance=0, reason=reason)
    rows = rearrange(quantizer.look_up(torch.from_numpy(case.arrays["token_ids"]).long()), "b d t h w -> b t h w d")
    agree("quantizer", "rows of the codebook", rows, case.arrays["quantized"], tolerance=0, reason="a copy")


@torch.no_grad()
@pytest.mark.parametrize(
    ("ids", "answer"), [("token_ids", "decode_from_token_ids"), ("random_token_ids", "decode_from_random_ids")]
)
def test_decoder(case: Case, agree: Agree, ids: str, answer: str) -> None:
    token_ids = torch.from_numpy(case.arrays[ids]).long()
    decoded = case.model.decode(case.model.quantizer.look_up(token_ids))
    what, expected = "decoder from token ids", case.arrays[answer]
    agree(f"VQGAN {case.ndim}D", what, video_of(decoded), expected, tolerance=1e-4, relative=True, reason=FORWARD)
    clip = video_of(case.model.detokenize(token_ids))
    assert np.array_equal(clip, video_of(decoded).clip(0, 1))


def test_training_forward_losses_and_gradients(case: Case, agree: Agree) -> None:
    clip, weights = clip_of(case.arrays["input_video"]), VQGANLossConfig()
    reconstruction, quantized = case.model(clip)
    name, arrays = f"VQGAN {case.ndim}D", case.arrays
    forward = {"tolerance": 1e-4, "relative": True, "reason": FORWARD}
    agree(name, "training reconstruction", video_of(reconstruction), arrays["train_reconstruction"], **forward)
    agree(name, "reconstruction", video_of(reconstruction), arrays["reconstruction"], **forward)
    straight_through = arrays["train_quantized_straight_through"]
    agree("quantizer", "straight-through vectors", video_of(quantized.latents), straight_through, **forward)
    parts = {
        "e_latent_loss": weights.commitment_weight * quantized.commitment_loss,
        "q_latent_loss": quantized.codebook_loss,
        "entropy_loss": weights.entropy_weight * quantized.entropy_loss,
        "quantizer_loss": quantizer_loss(quantized, weights),
    }
    for part, value in parts.items():
        expected = arrays[f"train_loss/{part}"]
        agree("quantizer", part, value, expected, tolerance=1e-5, relative=True, reason="float32 means")
    case.model.zero_grad()
    (F.mse_loss(reconstruction, clip) + parts["quantizer_loss"]).backward()
    gradients, norms = flax_gradients(vqgan_leaves(case.model)), case.facts["grad_l2_norm"]
    reason = "relative to each gradient's norm; float32 backward through the whole network; the issue's bound"
    differences = norm_differences(gradients, norms)
    agree(name, "norms of all gradients", differences, 0 * differences, tolerance=1e-3, reason=reason)
    differences = gradient_differences(gradients, under(arrays, "grad"), norms)
    assert len(differences) > 10
    agree(name, "stored gradients", differences, 0 * differences, tolerance=1e-3, reason=reason)
