"""Subsets of COMMIT's three losses: `python -m benchmarks.claims.losses`. MAGVIT equations 4 and 5."""

from collections.abc import Sequence

from benchmarks.claims.demo import ClaimsConfig
from benchmarks.claims.transformers import run
from magvit_scale.config import parse, refusals_end_the_program


def main(argv: Sequence[str] | None = None) -> None:
    """Trains three transformers with every seed; that with all losses is conditioning's."""
    run(parse(ClaimsConfig, argv), "losses", "Losses", ("commit", "mask", "mask_reconstruct"))


if __name__ == "__main__":
    with refusals_end_the_program("benchmarks.claims.losses"):
        main()
