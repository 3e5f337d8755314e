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
from magvit_scale.config import Refusal, TrainCommitConfig, TrainVQGANConfig, describe, load_part
from magvit_scale.flax_tree import Leaf, Tree, fill_from_tree, read_tree
from magvit_scale.vqgan.autoencoder import VQGAN
from magvit_scale.vqgan.discriminator import Discriminator
from magvit_scale.vqgan.flax import discriminator_leaves, discriminator_sizes, vqgan_leaves, vqgan_sizes

NO_TREE_TELLS = (
    "No tree tells padding and temporal_downsample: here {0.padding} and {0.temporal_downsample}; the released "
    "configurations pad with zeros (model.padding=zeros).\n"
)


@dataclass(frozen=True)
class Kind:
    """One kind of tree."""

    build: Callable[[Any], Any]
    leaves: Callable[[Any], list[Leaf]]
    sizes: Callable[[Tree, str], dict[str, Any]]
    """What the tree's shapes tell of the config."""
    schema: type
    """The training configuration that the CONFIG files are of."""
    part: str
    """The field of it that describes the network."""
    decided: dict[str, Any]
    """What the kind itself tells."""


def _vqgan(ndim: int) -> Kind:
    return Kind(VQGAN, vqgan_leaves, vqgan_sizes, TrainVQGANConfig, "model", {"ndim": ndim})


def _discriminator(ndim: int) -> Kind:
    leaves, sizes = discriminator_leaves, discriminator_sizes
    return Kind(Discriminator, leaves, sizes, TrainVQGANConfig, "discriminator", {"ndim": ndim})


KINDS = {
    "vqgan2d": _vqgan(2),
    "vqgan3d": _vqgan(3),
    "discriminator2d": _discriminator(2),
    "discriminator3d": _discriminator(3),
    "transformer": Kind(CommitTransformer, transformer_leaves, transformer_sizes, TrainCommitConfig, "model", {}),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Imports one tree.

    Raises:
        Refusal: an unread or an unfilled tensor, or sizes that disagree with the config.
    """
    given = _parser().parse_args(argv)
    kind, tree = KINDS[given.kind], read_tree(given.params, given.subtree)
    model = build_model(kind, tree, given.params, given.config)
    leaves = kind.leaves(model)
    fill_from_tree(leaves, tree, given.params)
    model.save_pretrained(given.out)
    count = sum(leaf.parameter.numel() for leaf in leaves)
    sys.stdout.write(f"{len(leaves)} tensors, {count:,} parameters -> {given.out}\n{model.config}\n")
    if kind.build is VQGAN:
        sys.stdout.write(NO_TREE_TELLS.format(model.config))


def build_model(kind: Kind, tree: Tree, source: str, arguments: Sequence[str]) -> Any:
    """An empty model of the sizes that tree, CONFIG files and key=value give, in this order."""
    overrides = [argument for argument in arguments if "=" in argument]
    files = [argument for argument in arguments if "=" not in argument]
    known = {kind.part: kind.decided | kind.sizes(tree, source)}
    config = load_part(kind.schema, kind.part, [known, *files], overrides)
    for name, value in kind.decided.items():
        if getattr(config, name) != value:
            raise Refusal(f"{kind.part}.{name}={getattr(config, name)}, --kind says {value}; leave one of them out")
    return kind.build(config)


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
    parser.add_argument("--params", required=True, help="an npz by Flax path, or a folder of NAME.params-N.npz parts")
    parser.add_argument("--out", required=True, help="folder that receives config.json and model.safetensors")
    parser.add_argument("--subtree", help="only what lies under this path, as ema_params (default: params, if there)")
    parser.add_argument("config", nargs="*", help="CONFIG.yaml of a training run, key=value")
    return parser
