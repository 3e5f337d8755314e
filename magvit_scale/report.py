"""magvit report: run folders -> one HTML page that opens from disk, and the gates' verdict.

python -m magvit_scale.report 'runs=[runs/a/vqgan3d,runs/a/commit]' generated=runs/a/generated
judgement=runs/a/judgement output=runs/a/report.html
"""

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from html import escape
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Any

from omegaconf import OmegaConf

from magvit_scale.config import ReportConfig, parse, refusals_end_the_program
from magvit_scale.page import sections
from magvit_scale.page.inputs import Judgement, Run, Samples, read_judgement, read_run, read_samples
from magvit_scale.page.tables import number

LEDE = (
    "MAGVIT turns a video into a small grid of tokens and learns to fill in the tokens that are missing; by choosing "
    "which are missing, one network predicts, interpolates, in- and outpaints and invents clips. "
    "This page shows what the networks of this run do on clips they were not trained on, beside the simplest "
    "things that could do the same."
)
PACKAGES = ("magvit_scale", "torch", "deepspeed", "webdataset", "einops", "numpy")


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page, prints a line per gate, and ends non-zero where a gate failed and `gate=fail`.

    Raises:
        Refusal: an input is missing or damaged.
        SystemExit: a gate failed.
    """
    config = parse(ReportConfig, argv)
    runs = [read_run(folder) for folder in config.runs]
    samples, judgement = read_samples(config.generated), read_judgement(config.judgement)
    _write_aside(Path(config.output), render(config, runs, samples, judgement))
    _judge(judgement.results["gates"], config)


def render(config: ReportConfig, runs: Sequence[Run], samples: Samples, judgement: Judgement) -> str:
    """The page's HTML; the same inputs give the same bytes."""
    results = judgement.results
    parts = [
        (
            "gates",
            "Does it learn?",
            "Claims about held-out clips, each beside a baseline that is hard to fool.",
            sections.gates(results),
        ),
        (
            "reconstructions",
            "Reconstruction",
            "Held-out clips, squeezed into tokens and back: what is lost here, no later stage can bring back.",
            sections.reconstructions(judgement, samples.fps),
        ),
        (
            "tasks",
            "Ten tasks, one network",
            "Left what the network was given, in the middle what it made of it, right what really happened.",
            sections.tasks(samples),
        ),
        (
            "decoding",
            "Decoding, step by step",
            "All tokens are guessed at once, the surest are kept and the rest guessed again. Under each picture: the "
            "tokens kept so far, one grid per latent frame.",
            sections.trajectories(samples),
        ),
        (
            "training",
            "Training",
            "Thin: as logged. Thick: smoothed. The number is the last value.",
            sections.training(runs),
        ),
        ("codebook", "Codebook", "The tokenizer's vocabulary on held-out clips.", sections.codebook(results)),
        ("figures", "Figures", "All figures are of held-out clips.", sections.evaluation_tables(results)),
        (
            "reproduce",
            "Reproduce",
            "From the repository's folder, in this order:",
            sections.reproduce(_commands(config), runs),
        ),
        ("environment", "Environment", "What this was made on.", sections.definitions(_environment(runs))),
    ]
    shown = [part for part in parts if part[3]]
    template = resources.files("magvit_scale.page").joinpath("template.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(config.title),
        lede=escape(LEDE),
        warning=sections.warning(results),
        navigation="".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, _, _ in shown),
        sections="".join(
            f'<section id="{anchor}"><h2>{heading}</h2><p>{caption}</p>{body}</section>'
            for anchor, heading, caption, body in shown
        ),
    )


def _judge(gates: Sequence[Mapping[str, Any]], config: ReportConfig) -> None:
    for gate in gates:
        verdict = "passed" if gate["passed"] else "FAILED"
        values = f"{number(gate['value'])} against {number(gate['baseline'])} {gate.get('unit', '')}".rstrip()
        print(f"gate {gate['id']} {verdict}: {gate['claim']}: {values}")  # noqa: T201
    failed = [f"{gate['id']} ({gate['claim']})" for gate in gates if not gate["passed"]]
    if not failed:
        return
    message = f"report: {len(failed)} of {len(gates)} gates failed: {', '.join(failed)}; see {config.output}"
    if config.gate == "fail":
        raise SystemExit(message)
    print(f"warning: {message}", file=sys.stderr)  # noqa: T201


def _commands(config: ReportConfig) -> list[str]:
    """One command per folder that keeps the configuration it was made with, and this page's own."""
    lines = [f"magvit {_verb(Path(folder))} {shlex.quote(f'{folder}/config.yaml')}" for folder in config.runs]
    for verb, folder in (("generate", config.generated), ("judge", config.judgement)):
        if Path(folder, "config.yaml").exists():
            lines.append(f"magvit {verb} {shlex.quote(f'{folder}/config.yaml')}")
    own = {
        "runs": f"[{','.join(config.runs)}]",
        "generated": config.generated,
        "judgement": config.judgement,
        "output": config.output,
    }
    return [*lines, f"magvit report {' '.join(shlex.quote(f'{key}={value}') for key, value in own.items())}"]


def _verb(run: Path) -> str:
    return "train-commit" if "tokens" in OmegaConf.load(run / "config.yaml") else "train-vqgan"


def _environment(runs: Sequence[Run]) -> dict[str, Any]:
    """What the training runs wrote down about their machine; where they did not, that of this program."""
    for run in reversed(runs):
        if run.environment:
            return dict(run.environment)
    installed = {package: _version(package) for package in PACKAGES}
    return {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}", **installed}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _write_aside(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


if __name__ == "__main__":
    with refusals_end_the_program("report"):
        main()
