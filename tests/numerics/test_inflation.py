"""2D -> 3D inflation against the official one, tensor by tensor, and the inflated networks' answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from magvit_scale.config import DiscriminatorConfig, Inflation
from magvit_scale.flax_tree import tree_of
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.flax import discriminator_leaves, vqgan_leaves
from magvit_scale.vqgan.inflate import inflate_2d_to_3d
from tests.numerics.official import Agree, clip_of, imported, under, video_of

COPY = "kernels are placed or divided by 3, nothing is summed"


def import_2d(golden_folder: Path, folder: Path) -> tuple[VQGAN, Discriminator]:
    source = golden_folder / "inflate_before_2d.npz"
    subtrees = ("--subtree", "generator_2d"), ("--subtree", "discriminator_2d")
    generator = imported("vqgan2d", source, folder / "generator", *subtrees[0], "model.padding=zeros")
    discriminator = imported("discriminator2d", source, folder / "discriminator", *subtrees[1])
    return VQGAN.from_pretrained(generator), Discriminator.from_pretrained(discriminator)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["central", "average"])
def test_inflated_tensors_and_answers(mode: Inflation, golden_folder, golden, tmp_path, agree: Agree) -> None:
    arrays = golden(f"inflate_{mode}.npz")
    flat, judge_2d = import_2d(golden_folder, tmp_path)
    clip, judged = clip_of(arrays["input_video"]), clip_of(arrays["input_video_disc"])
    deep = VQGAN(replace(flat.config, ndim=3))
    judge = Discriminator(replace(judge_2d.config, ndim=3, clip_shape=tuple(judged.shape[2:])))
    for ours, theirs in ((deep, flat), (judge, judge_2d)):
        shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
        ours.load_state_dict(inflate_2d_to_3d(theirs.state_dict(), shapes, mode))

    name = f"inflation, {mode}"
    for what, tree, expected in (
        ("every tensor of G", tree_of(vqgan_leaves(deep)), under(arrays, "generator_3d")),
        ("every tensor of D", tree_of(discriminator_leaves(judge)), under(arrays, "discriminator_3d")),
    ):
        assert tree.keys() == expected.keys()
        worst = np.array([np.abs(tree[path] - array).max() for path, array in expected.items()])
        agree(name, what, worst, 0 * worst, tolerance=0, reason=COPY)
    forward = {"tolerance": 1e-4, "relative": True, "reason": "float32; the issue's bound"}
    agree(name, "encoder of G", video_of(deep.encode(clip)), arrays["encoder_output_3d"], **forward)
    agree(name, "reconstruction of G", video_of(deep(clip)[0]), arrays["reconstruction_3d"], **forward)
    agree(name, "logits of D", judge(judged), arrays["disc_logits_3d"], **forward)


def test_the_imported_discriminator_knows_its_shape(golden_folder, tmp_path) -> None:
    _, judge = import_2d(golden_folder, tmp_path)
    config = DiscriminatorConfig(ndim=2, base_channels=8, clip_shape=(32, 32, 32))
    assert judge.config == config
