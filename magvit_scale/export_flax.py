"""A model folder -> weights for the official code: `magvit export-flax --model DIR --out params.npz`.

The inverse of `magvit import-flax`: importing, exporting and importing again gives the same bits.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from magvit_scale.config import Refusal
from magvit_scale.files import write_npz
from magvit_scale.flax_tree import tree_of
from magvit_scale.import_flax import NETWORKS
from magvit_scale.pretrained import kind_of


def main(argv: Sequence[str] | None = None) -> None:
    """Exports one model folder."""
    parser = argparse.ArgumentParser(
        prog="magvit export-flax", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder with config.json and model.safetensors")
    parser.add_argument(
        "--out", required=True, help="npz that receives the arrays by Flax path, as encoder/Conv_0/kernel"
    )
    given = parser.parse_args(argv)
    if (kind := kind_of(given.model)) not in NETWORKS:
        raise Refusal(f"{given.model}: is a {kind}, expected one of {', '.join(NETWORKS)}")
    network = NETWORKS[kind]
    tree = tree_of(network.leaves(network.build.from_pretrained(given.model)))
    write_npz(Path(given.out), tree)
    sys.stdout.write(f"{len(tree)} tensors -> {given.out}\n")
