"""Where the VQGAN's and the discriminator's parameters lie in the official Flax trees (spec section 12).

Flax numbers layers of a kind in the order in which a network creates them.
"""

from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from typing import Any

from torch import nn

from magvit_scale.flax_tree import Leaf, Tree, count_layers, layer_leaves, shape_of
from magvit_scale.vqgan.autoencoder import VQGAN, Decoder, Encoder
from magvit_scale.vqgan.discriminator import Discriminator

Layers = dict[str, nn.Module]

BLOCK = {"GroupNorm_0": "norm1", "Conv_0": "conv1", "GroupNorm_1": "norm2", "Conv_1": "conv2", "Conv_2": "shortcut"}
"""Flax's names of a residual block's layers; a block that keeps its width has no Conv_2."""


def vqgan_leaves(model: VQGAN) -> list[Leaf]:
    """Every parameter of a VQGAN."""
    codebook = Leaf("quantizer/codebook", model.quantizer.codebook, "k d -> k d")
    return [*_encoder(model.encoder), codebook, *_decoder(model.decoder)]


def discriminator_leaves(model: Discriminator) -> list[Leaf]:
    """Every parameter of a discriminator."""
    layers: Layers = {"Conv_0": model.conv_in, "Conv_1": model.conv_out, "Dense_0": model.dense, "Dense_1": model.logit}
    for index, block in enumerate(model.blocks):
        for number, name in enumerate(("conv1", "skip", "conv2")):
            layers[f"ResBlock_{index}/Conv_{number}"] = block.get_submodule(name)
    return _all_layers("", layers)


def _encoder(encoder: Encoder) -> list[Leaf]:
    layers: Layers = {"Conv_0": encoder.conv_in, "GroupNorm_0": encoder.norm_out, "Conv_1": encoder.conv_out}
    return _all_layers("encoder/", layers | _residual_blocks([*encoder.stages, encoder.middle]))


def _decoder(decoder: Decoder) -> list[Leaf]:
    convolutions = [decoder.conv_in, *decoder.upsamplers, decoder.conv_out]
    layers: Layers = {f"Conv_{index}": layer for index, layer in enumerate(convolutions)}
    blocks = _residual_blocks([decoder.middle, *decoder.stages])
    return _all_layers("decoder/", layers | {"GroupNorm_0": decoder.norm_out} | blocks)


def _residual_blocks(stages: Sequence[nn.Module]) -> Layers:
    blocks = [block for stage in stages for block in stage.children()]
    return {
        f"ResBlock_{index}/{name}": layer
        for index, block in enumerate(blocks)
        for name, attribute in BLOCK.items()
        if not isinstance(layer := block.get_submodule(attribute), nn.Identity)
    }


def _all_layers(prefix: str, layers: Layers) -> list[Leaf]:
    return [leaf for name, layer in layers.items() for leaf in layer_leaves(prefix + name, layer)]


def vqgan_sizes(tree: Tree, source: str | Path, ndim: int) -> dict[str, Any]:
    """The fields of VQGANConfig that the shapes of a tree tell; temporal_downsample and padding they do not."""
    num_axes = ndim + 2
    base_channels = shape_of(tree, "encoder/Conv_0/kernel", num_axes, source)[-1]
    num_stages = max(1, count_layers(tree, "decoder/Conv_") - 1)
    num_res_blocks = count_layers(tree, "encoder/ResBlock_") // (num_stages + 1)
    firsts = [f"encoder/ResBlock_{num_res_blocks * stage}/Conv_0/kernel" for stage in range(num_stages)]
    codebook_size, embedding_dim = shape_of(tree, "quantizer/codebook", 2, source)
    return {
        "base_channels": base_channels,
        "channel_multipliers": [shape_of(tree, path, num_axes, source)[-1] // base_channels for path in firsts],
        "num_res_blocks": num_res_blocks,
        "codebook_size": codebook_size,
        "embedding_dim": embedding_dim,
    }


def discriminator_sizes(tree: Tree, source: str | Path, ndim: int) -> dict[str, Any]:
    """The fields of DiscriminatorConfig that the shapes of a tree tell; `clip_shape` is a guess: that of a square
    clip of which one frame is left, as in every official run.
    """
    num_axes = ndim + 2
    base_channels = shape_of(tree, "Conv_0/kernel", num_axes, source)[-1]
    blocks = [f"ResBlock_{index}/Conv_2/kernel" for index in range(count_layers(tree, "ResBlock_"))]
    dense_inputs, channels = shape_of(tree, "Dense_0/kernel", 2, source)
    side, factor = isqrt(dense_inputs // channels), 2 ** len(blocks)
    is_square = side**2 * channels == dense_inputs
    return {
        "base_channels": base_channels,
        "channel_multipliers": [shape_of(tree, path, num_axes, source)[-1] // base_channels for path in blocks],
        "clip_shape": [factor, side * factor, side * factor] if is_square else None,
    }
