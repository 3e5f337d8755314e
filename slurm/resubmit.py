"""Submits what is unfinished of a chain again: python -m slurm.resubmit RUN [key=value ...]."""

from collections.abc import Sequence

from magvit_scale.config import refusals_end_the_program
from slurm import launch
from slurm.chain import arguments_of, open_chain

SUMMARY = "Repeats the command that started a chain, from the folder where it was given: what is finished stays."


def main(argv: Sequence[str] | None = None) -> None:
    """Launches with the recorded arguments and those given here, for instance resources.exclude=node7."""
    parser = arguments_of("slurm.resubmit", SUMMARY)
    parser.add_argument("more", metavar="KEY=VALUE", nargs="*", help="further arguments of python -m slurm.launch")
    options = parser.parse_args(argv)
    launch.main([*open_chain(options.run).arguments, *options.more])


if __name__ == "__main__":
    with refusals_end_the_program("slurm.resubmit"):
        main()
