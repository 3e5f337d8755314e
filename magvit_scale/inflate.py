"""A 2D VQGAN -> a 3D VQGAN to start from: `magvit inflate source=runs/2d/export output=runs/inflated [key=value ...]`.

Inflates averaged weights, unaveraged weights and discriminator alike (spec section 3).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from magvit_scale.config import DiscriminatorConfig, InflateConfig, Refusal, VQGANConfig, parse
from magvit_scale.pretrained import load_config, load_tensors, save_model
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.inflate import inflate_2d_to_3d


def main(argv: Sequence[str] | None = None) -> None:
    """Inflates the three parts of an export folder.

    Raises:
        Refusal: the source is no 2D VQGAN, or a tensor is left over on either side.
    """
    config = parse(InflateConfig, argv)
    source, output = Path(config.source), Path(config.output)
    model_2d = load_config(VQGANConfig, source, "VQGAN")
    if model_2d.ndim != 2:
        raise Refusal(f"{source}: is a {model_2d.ndim}D VQGAN, expected a 2D one")
    model_3d = replace(model_2d, ndim=3, temporal_downsample=config.temporal_downsample)
    judge = load_config(DiscriminatorConfig, source / "discriminator", "Discriminator")
    judge_3d = replace(judge, ndim=3, clip_shape=(config.num_frames, config.size_px, config.size_px))
    _inflate(config, source / "unaveraged", output / "unaveraged", VQGAN(model_3d), model_3d)
    _inflate(config, source / "discriminator", output / "discriminator", Discriminator(judge_3d), judge_3d)
    _inflate(config, source, output, VQGAN(model_3d), model_3d)


def _inflate(config: InflateConfig, source: Path, output: Path, network: nn.Module, model: Any) -> None:
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    save_model(network, model, output, inflate_2d_to_3d(load_tensors(source), shapes, config.mode))
