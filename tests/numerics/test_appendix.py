"""Reference numbers of the official classes that need no files (spec appendix A): weights are a rule of their names."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magvit_scale.commit.flax import transformer_leaves
from magvit_scale.commit.losses import token_cross_entropy
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import DiscriminatorConfig, Padding, TransformerConfig, VQGANConfig, VQGANLossConfig
from magvit_scale.flax_tree import Leaf, fill_from_tree, tree_of
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.flax import discriminator_leaves, vqgan_leaves
from magvit_scale.vqgan.losses import compute_discriminator_loss, compute_generator_loss, compute_r1_penalty
from tests.numerics.official import Agree, clip_of, video_of

PRINTED = "the reference is printed with so many digits"


def fill_by_rule(leaves: Sequence[Leaf]) -> None:
    """Path j of the sorted ones gets RandomState(j)'s normal numbers, scaled by its kind."""
    tree = tree_of(leaves)
    for index, path in enumerate(sorted(tree)):
        shape = tree[path].shape
        draws = np.random.RandomState(index).standard_normal(shape)
        tree[path] = (_scale(path, shape) * draws + path.endswith("scale")).astype(np.float32)
    fill_from_tree(leaves, tree, "appendix A")


def _scale(path: str, shape: tuple[int, ...]) -> float:
    match path.split("/")[-1]:
        case "kernel":
            is_projection = any(f"/{name}/" in path for name in ("query", "key", "value"))
            return float(np.sqrt(2 / (shape[0] if is_projection else np.prod(shape[:-1]))))
        case "scale" | "bias":
            return 0.1
        case "embedding":
            return 0.5
    return 1.0


def clip(seed: int) -> Tensor:
    video = np.random.RandomState(seed).uniform(size=(2, 4, 16, 16, 3))
    return clip_of(video.astype(np.float32))


def build(ndim: int, padding: Padding) -> VQGAN:
    model = VQGAN(
        VQGANConfig(
            ndim=ndim,  # type: ignore[arg-type]
            base_channels=32,
            channel_multipliers=(1, 2, 2),
            num_res_blocks=1,
            temporal_downsample=(True, False),
            embedding_dim=16,
            codebook_size=64,
            padding=padding,
        )
    )
    fill_by_rule(vqgan_leaves(model))
    return model


def summary(values: np.ndarray | Tensor, num_last: int = 0) -> list[float]:
    """Mean, deviation, the first five numbers, the last ones."""
    flat = np.asarray(values.detach() if isinstance(values, Tensor) else values).reshape(-1)
    return [flat.mean(), flat.std(), *flat[:5], *flat[len(flat) - num_last :]]


# fmt: off
ANSWERS: dict[tuple[int, Padding], dict[str, list[float]]] = {
    (3, "zeros"): {
        "latents": [0.008687, 0.914630, 0.94633, 0.77592, 0.01633, 0.52564, 0.37588, 0.55951, -1.62542, 0.71790],
        "ids": [44, 44, 44, 28, 10, 10, 44, 54, 46, 44, 50, 10, 44, 10, 10, 36, 59, 28, 59, 44, 40, 55, 55, 51, 59, 59,
                46, 51, 55, 51, 53, 6, 10, 44, 44, 44, 46, 44, 25, 44, 50, 10, 46, 60, 10, 46, 10, 44, 59, 28, 5, 44,
                55, 28, 43, 51, 55, 59, 51, 51, 51, 51, 51, 51],
        "reconstruction": [-0.061852, 0.822085, -0.14899, 0.33397, -0.18500, -0.05268, 0.00730,
                           0.12671, -0.48574, -0.46071],
        "losses": [0.189117, 0.756469, -0.238487, 0.707100, 1.079371],
    },
    (3, "reflect"): {
        "latents": [0.024746, 0.941414, 1.08162, 0.23056, -0.49511, 0.43615, 0.54559, 0.36688, -1.12494, -0.59368],
        "ids": [51, 45, 6, 51, 55, 55, 55, 51, 51, 51, 55, 51, 44, 50, 46, 5, 59, 44, 55, 51, 44, 46, 55, 51, 59, 46,
                55, 28, 46, 44, 55, 51, 46, 5, 6, 44, 44, 44, 55, 55, 51, 28, 5, 46, 51, 51, 51, 51, 51, 55, 45, 45,
                53, 44, 4, 51, 51, 4, 51, 51, 19, 26, 55, 46],
        "reconstruction": [-0.111104, 0.880386, 0.23786, -1.71481, -1.35321, 0.32132, -1.61733],
        "losses": [0.206070, 0.824282, -0.214925, 0.815427, 1.241601],
    },
    (2, "zeros"): {
        "latents": [-0.079822, 0.873095, -0.22016, 1.16195, -0.45417, 0.73997, -0.21006],
        "ids": [60, 55, 59, 31, 26, 55, 50, 59, 59, 10, 50, 59, 50, 32, 55, 45],
        "reconstruction": [-0.278104, 0.820774, -0.17222, 0.32667, -0.03297, -0.18089, 0.55579],
    },
}
# fmt: on
TWO_D_IDS_SUM = 5498


@torch.no_grad()
@pytest.mark.parametrize(("ndim", "padding"), ANSWERS)
def test_vqgan(ndim: int, padding: Padding, agree: Agree) -> None:
    model, x, answers, weights = build(ndim, padding), clip(300), ANSWERS[ndim, padding], VQGANLossConfig()
    latents, (reconstruction, quantized) = video_of(model.encode(x)), model(x)
    name = f"VQGAN {ndim}D, {padding} (appendix A)"
    printed = {"tolerance": 2e-5, "reason": PRINTED}
    agree(name, "encoder", summary(latents, len(answers["latents"]) - 7), answers["latents"], **printed)
    ids = quantized.token_ids.flatten().tolist()
    agree(name, "token ids", ids[: len(answers["ids"])], answers["ids"], tolerance=0, reason="integers")
    if ndim == 2:
        assert sum(ids) == TWO_D_IDS_SUM
    pixels, expected = video_of(reconstruction), answers["reconstruction"]
    agree(name, "reconstruction", summary(pixels, len(expected) - 7), expected, **printed)
    if "losses" in answers:
        parts = [
            weights.commitment_weight * quantized.commitment_loss,
            quantized.codebook_loss,
            weights.entropy_weight * quantized.entropy_loss,
        ]
        found = [*parts, sum(parts), F.mse_loss(reconstruction, x)]
        agree(name, "losses", [float(value) for value in found], answers["losses"], **printed)


def build_judge(ndim: int) -> nn.Module:
    config = DiscriminatorConfig(
        ndim=ndim,  # type: ignore[arg-type]
        base_channels=8,
        channel_multipliers=(2, 4),
        clip_shape=(4, 16, 16),
    )
    judge = Discriminator(config)
    fill_by_rule(discriminator_leaves(judge))
    return judge


def test_discriminators(agree: Agree) -> None:
    real, fake, judge = clip(300).requires_grad_(), clip(1100), build_judge(3)
    printed = {"tolerance": 2e-6, "reason": PRINTED}
    name = "discriminator 3D (appendix A)"
    agree(name, "logits of real", judge(real).flatten(), [0.078096, 0.136274], **printed)
    agree(name, "logits of fake", judge(fake).flatten(), [0.096445, 0.096373], **printed)
    agree(name, "10 x r1", 10 * compute_r1_penalty(judge(real), real), 0.1115074, **printed)
    agree(name, "loss of D", compute_discriminator_loss(judge(real), judge(fake)), 1.3836085, **printed)
    agree(name, "loss of G", compute_generator_loss(judge(fake)), 0.6461041, **printed)
    frames = [-0.574184, -0.766376, -0.757751, -0.695638, -0.759964, -0.608393, -0.691641, -0.486757]
    agree("discriminator 2D (appendix A)", "logits of frames", build_judge(2)(real).flatten(), frames, **printed)


@torch.no_grad()
def test_transformer(agree: Agree) -> None:
    model = CommitTransformer(
        TransformerConfig(
            num_layers=2,
            hidden_size=32,
            mlp_dim=64,
            num_heads=4,
            latent_shape=(2, 4, 4),
            codebook_size=64,
            num_classes=2,
        )
    ).eval()
    fill_by_rule(transformer_leaves(model))
    k = torch.arange(64)
    targets = (7 * k % 64).reshape(2, 32)
    prefixes = torch.tensor([[-4, 66], [-6, 65]])
    logits = model(torch.cat([prefixes, torch.where(k % 3 == 0, -1, 7 * k % 64).reshape(2, 32)], dim=1))
    expected = [-0.223920, 3.261692, -0.25941, 2.32131, 2.37622, 1.25894, 1.17967, -2.91608, 3.43271, -6.98455]
    name = "transformer (appendix A)"
    agree(name, "logits", summary(logits, 3), expected, tolerance=2e-5, reason=PRINTED)
    loss = token_cross_entropy(logits[:, 2:, :64], targets, label_smoothing=1e-4).mean()
    agree(name, "smoothed cross-entropy", loss, 8.5352593, tolerance=2e-6, reason=PRINTED)
