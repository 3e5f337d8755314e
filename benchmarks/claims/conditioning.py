"""COMMIT beside other ways of telling a transformer its condition: `python -m benchmarks.claims.conditioning`.

MAGVIT section 3.2 and its comparison on BAIR: latent masking as MaskGIT's, condition tokens as a prefix; and, not in
the paper, the canvas's tokens standing for good.
"""

from collections.abc import Sequence

from benchmarks.claims.demo import ClaimsConfig
from benchmarks.claims.transformers import run
from magvit_scale.config import parse, refusals_end_the_program


def main(argv: Sequence[str] | None = None) -> None:
    """Trains four transformers with every seed."""
    run(parse(ClaimsConfig, argv), "conditioning", "Conditioning", ("commit", "canvas", "latent", "prefix"))


if __name__ == "__main__":
    with refusals_end_the_program("benchmarks.claims.conditioning"):
        main()
