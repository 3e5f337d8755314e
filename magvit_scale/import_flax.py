"""Weights of the official code -> a model folder: `magvit import-flax --kind vqgan3d --params params.npz --out DIR`.

Every tensor of the tree must find its place and every parameter its tensor. Sizes are read from the tree; CONFIG
files of a training run and key=value say the rest (`model.padding`, `model.latent_shape`, ...) and must agree with it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from magvit_scale.commit.flax import transformer_leaves, transformer_sizes
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import Refusal, TrainCommitConfig, TrainVQGANConfig, describe, is_override, load_part
from magvit_scale.flax_tree import Leaf, Tree, fill_from_tree, read_tree
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.flax import discriminator_leaves, discriminator_sizes, vqgan_leaves, vqgan_sizes


@dataclass(frozen=True)
class Network:
    """One of our networks, and what its official tree tells of it."""

    build: Any
    """The class."""
    leaves: Callable[[Any], list[Leaf]]
    sizes: Callable[..., dict[str, Any]]
    """(tree, source, and `ndim` where a network has it) -> what the shapes tell of the config."""
    schema: type
    """The training configuration that the CONFIG files are of."""
    part: str
    """The field of it that describes the network."""
    untold: tuple[str, ...]
    """Fields that no tree tells: a wrong one imports without an error."""
    released: str
    """What the released code trains with, where our defaults are the paper's."""


NETWORKS = {
    "VQGAN": Network(
        VQGAN,
        vqgan_leaves,
        vqgan_sizes,
        TrainVQGANConfig,
        part="model",
        untold=("padding", "temporal_downsample", "num_groups"),
        released="model.padding=zeros",
    ),
    "Discriminator": Network(
        Discriminator,
        discriminator_leaves,
        discriminator_sizes,
        TrainVQGANConfig,
        part="discriminator",
        untold=("clip_shape", "resample"),
        released="discriminator.resample=average",
    ),
    "CommitTransformer": Network(
        CommitTransformer,
        transformer_leaves,
        transformer_sizes,
        TrainCommitConfig,
        part="model",
        untold=(
            "latent_shape",
            "codebook_size",
            "num_classes",
            "inpainting_token",
            "conditioning",
            "dynamic_condition",
        ),
        released="model.inpainting_token=outpainting",
    ),
}
"""By the class name that a model folder's config.json holds."""

KINDS: dict[str, tuple[str, dict[str, int]]] = {
    "vqgan2d": ("VQGAN", {"ndim": 2}),
    "vqgan3d": ("VQGAN", {"ndim": 3}),
    "discriminator2d": ("Discriminator", {"ndim": 2}),
    "discriminator3d": ("Discriminator", {"ndim": 3}),
    "transformer": ("CommitTransformer", {}),
}
"""Network and what the kind decides of its config."""


def main(argv: Sequence[str] | None = None) -> None:
    """Imports one tree.

    Raises:
        Refusal: an unread or an unfilled tensor, or sizes that disagree with the config.
    """
    given = _parser().parse_intermixed_args(argv)
    name, decided = KINDS[given.kind]
    network, tree = NETWORKS[name], read_tree(given.params, given.subtree)
    model = build_model(network, decided, tree, given.params, given.config)
    leaves = network.leaves(model)
    fill_from_tree(leaves, tree, given.params)
    model.save_pretrained(given.out)
    sys.stdout.write("\n".join([*describe_import(network, model, leaves, given.out), ""]))


def build_model(network: Network, decided: dict[str, int], tree: Tree, source: str, arguments: Sequence[str]) -> Any:
    """An empty model of the sizes that tree, CONFIG files and key=value give, in this order."""
    overrides = [argument for argument in arguments if is_override(argument)]
    files = [argument for argument in arguments if not is_override(argument)]
    if strange := [override for override in overrides if override.split(".")[0] != network.part]:
        raise Refusal(f"{strange[0]}: expected keys of this network, {network.part}.KEY=VALUE")
    known = {network.part: decided | network.sizes(tree, source, **decided)}
    config = load_part(network.schema, network.part, [known, *files], overrides)
    for name, value in decided.items():
        if getattr(config, name) != value:
            raise Refusal(f"{network.part}.{name}={getattr(config, name)}, --kind says {value}; leave one of them out")
    return network.build(config)


def describe_import(network: Network, model: Any, leaves: Sequence[Leaf], out: str) -> list[str]:
    """What was read, and what had to be taken on trust."""
    count = sum(leaf.parameter.numel() for leaf in leaves)
    untold = ", ".join(f"{name}={getattr(model.config, name)}" for name in network.untold)
    return [
        f"{len(leaves)} tensors, {count:,} parameters -> {out}",
        str(model.config),
        f"No tree tells {untold}; the released code has {network.released}.",
    ]


def _parser() -> argparse.ArgumentParser:
    keys = "\n\n".join(describe(schema) for schema in (TrainVQGANConfig, TrainCommitConfig))
    parser = argparse.ArgumentParser(
        prog="magvit import-flax",
        description=__doc__,
        epilog=f"Of these keys the parts `model` and `discriminator` are read.\n\n{keys}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--kind", required=True, choices=KINDS, help="which network the tree is of")
    parser.add_argument(
        "--params", required=True, help="npz by Flax path, folder of NAME.params-N.npz parts, or FOLDER/NAME"
    )
    parser.add_argument("--out", required=True, help="folder that receives config.json and model.safetensors")
    parser.add_argument("--subtree", help="only what lies under this path, as ema_params (default: params, if there)")
    parser.add_argument("config", nargs="*", help="CONFIG.yaml of a training run, key=value")
    return parser
