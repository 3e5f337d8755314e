"""The `magvit` command: verbs, nothing else. A verb's program is imported when it is chosen."""

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from magvit_scale.config import refusals_end_the_program
from magvit_scale.lifetime import leaves_at_once

VERBS = {
    "doctor": ("magvit_scale.doctor", "this machine, or all ranks of an allocation -> what would stop a run"),
    "fetch-weights": ("magvit_scale.fetch_weights", "weights of frozen networks: list, download, import, each checked"),
    "train-vqgan": ("magvit_scale.train_vqgan", "clip shards -> 2D or 3D VQGAN"),
    "inflate": ("magvit_scale.inflate", "2D VQGAN -> 3D VQGAN"),
    "precompute-tokens": ("magvit_scale.precompute_tokens", "clip shards and a VQGAN -> token shards"),
    "train-commit": ("magvit_scale.train_commit", "token shards -> transformer for all ten tasks"),
    "export": ("magvit_scale.export", "a checkpoint of a run -> model folders"),
    "generate": ("magvit_scale.generate", "task, condition clip and class -> videos"),
    "evaluate": (
        "magvit_scale.evaluate",
        "models by a protocol -> FVD, IS, PSNR, SSIM, LPIPS with their conditions",
    ),
    "judge": ("magvit_scale.judge", "models on held-out clips -> claims, each beside the baseline that it must beat"),
    "compare-results": (
        "magvit_scale.compare_results",
        "results of one protocol -> a table, with the paper's figures",
    ),
    "import-flax": ("magvit_scale.import_flax", "weights of the official code -> a model folder"),
    "export-flax": ("magvit_scale.export_flax", "a model folder -> weights for the official code"),
    "export-program": ("magvit_scale.export_program", "a VQGAN -> torch.export programs that run without this package"),
    "publish": ("magvit_scale.publish", "models and what their runs say of them -> a folder for the Hugging Face hub"),
    "report": ("magvit_scale.report", "run folders -> a self-contained HTML page each, and one that compares them"),
}
USAGE_STATUS = 2


def command() -> None:
    """The command itself, which is a process's only work: see `leaves_at_once`."""
    with leaves_at_once():
        main()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `VERB CONFIG... [key=value ...]`; without arguments of its own it takes the command line's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())  # noqa: T201
    elif arguments[0] == "--version":
        print(f"magvit_scale {_version()}")  # noqa: T201
    elif arguments[0] in VERBS:
        _run(*arguments)
    else:
        _refuse(arguments[0])


def help_text() -> str:
    """What `magvit --help` prints."""
    verbs = "\n".join(f"  {verb:<20}{meaning}" for verb, (_, meaning) in VERBS.items())
    return f"""usage: magvit VERB CONFIG.yaml... [key=value ...]

{verbs}

magvit VERB --help lists the verb's keys with their types, defaults and units; magvit --version prints the version.
YAML files are merged left to right, then the key=value arguments."""


def _run(verb: str, *arguments: str) -> None:
    with refusals_end_the_program(f"magvit {verb}"):
        importlib.import_module(VERBS[verb][0]).main(list(arguments))


def _refuse(verb: str) -> None:
    near = difflib.get_close_matches(verb, VERBS, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the verbs are {', '.join(VERBS)}"
    sys.stderr.write(f"magvit: no verb {verb!r}; {hint}\n")
    raise SystemExit(USAGE_STATUS)


def _version() -> str:
    try:
        return version("magvit_scale")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    command()
