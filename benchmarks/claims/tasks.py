"""One transformer for many tasks beside those of one task: `python -m benchmarks.claims.tasks`."""

from collections.abc import Sequence

from benchmarks.claims.demo import ClaimsConfig
from benchmarks.claims.transformers import run
from magvit_scale.config import parse, refusals_end_the_program


def main(argv: Sequence[str] | None = None) -> None:
    """Trains three transformers with every seed, and asks each every task; the first is conditioning's."""
    run(parse(ClaimsConfig, argv), "tasks", "Tasks", ("commit", "only_FP", "only_CG"))


if __name__ == "__main__":
    with refusals_end_the_program("benchmarks.claims.tasks"):
        main()
