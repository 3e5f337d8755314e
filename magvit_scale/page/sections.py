"""The sections of the page, each a function from what was read to HTML; empty where there is nothing to show."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from magvit_scale.config import Task
from magvit_scale.page.clips import Reconstructions, Samples, Trajectory
from magvit_scale.page.evaluations import Evaluation
from magvit_scale.page.inputs import Run
from magvit_scale.page.pictures import enlargement, latent_grid, moving_picture, strips
from magvit_scale.page.plots import sorted_bars
from magvit_scale.page.tables import definitions, number, scroll_box, table
from magvit_scale.page.words import RECONSTRUCTION_WORDS, TASK_WORDS

TASKS_BYTES, RECONSTRUCTION_BYTES, TRAJECTORY_BYTES = 2_800_000, 700_000, 1_000_000
"""Shares of a page that stays below 6 MB."""
MAX_TRAJECTORIES = 3


def warning(runs: Iterable[Run], evaluations: Iterable[Evaluation]) -> str:
    """What on this page is not the real metric, and why its figures stand beside no paper's."""
    sentences = dict.fromkeys(sentence for each in evaluations for sentence in each.reservations)
    if any(run.settings.get("loss.perceptual") == "random" for run in runs):
        sentences["The perceptual loss of the training was that of an untrained, random network."] = None
    text = " ".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return f'<div class="warning" role="note">{text}</div>' if text else ""


def gates(gates: Sequence[Mapping[str, Any]]) -> str:
    """Each claim beside the baseline that it has to beat."""
    rows = []
    for gate in gates:
        unit, direction = escape(gate.get("unit", "")), "higher" if gate.get("higher_is_better") else "lower"
        verdict = '<span class="passed">passed</span>' if gate["passed"] else '<span class="failed">failed</span>'
        claim = f"{escape(gate['claim'])} <small>{direction} is better</small>"
        rows.append([claim, verdict, f"{number(gate['value'])} {unit}", f"{number(gate['baseline'])} {unit}"])
    return table("Claims", ["claim", "verdict", "measured", "baseline"], rows) if rows else ""


def reconstructions(reconstructions: Reconstructions | None, fps: float) -> str:
    """Originals beside what the tokenizer makes of them."""
    if reconstructions is None:
        return ""
    return strips(list(reconstructions.panels.items()), reconstructions.names, fps, RECONSTRUCTION_BYTES)


def tasks(samples: Samples | None) -> str:
    """Condition, generated clip and real clip of every task."""
    if samples is None:
        return ""
    share = TASKS_BYTES // len(samples.tasks)
    parts = []
    for task, clips in samples.tasks.items():
        panels = [(condition_name(task), clips.condition), ("generated", clips.generated), ("real", clips.real)]
        parts.append(task_article(task, strips(panels, clips.names, samples.fps, share)))
    return "".join(parts)


def condition_name(task: str) -> str:
    """What stands over the pictures of a task's condition."""
    return "no condition" if task == "CG" else "condition"


def task_article(task: Task, body: str) -> str:
    """A task's name and meaning over its pictures."""
    name, sentence = TASK_WORDS[task]
    heading = f'<h3>{name} <abbr class="code">{task}</abbr></h3><p>{sentence}</p>'
    return f'<article class="task" id="{task}">{heading}{body}</article>'


def trajectories(samples: Samples | None) -> str:
    """How a clip comes into being: picture and decided tokens after every decoding step."""
    if samples is None:
        return ""
    chosen = list(samples.trajectories.items())[:MAX_TRAJECTORIES]
    return "".join(
        f"<h3>{TASK_WORDS[task][0]}</h3>{_steps(trajectory, samples.fps, TASK_WORDS[task][0])}"
        for task, trajectory in chosen
    )


def codebook(results: Mapping[str, Any]) -> str:
    """How evenly the codes are used on held-out clips."""
    use = results.get("codebook")
    if not use:
        return ""
    counts = use["counts"]
    sentence = (
        f"{100 * use['used']:.0f} % of the {len(counts)} codes occur; the perplexity, {number(use['perplexity'])}, "
        "is the number of codes that would be in use if all were used alike."
    )
    return f"<p>{sentence}</p>{scroll_box('Use of each code', sorted_bars(counts))}"


def evaluation_tables(results: Mapping[str, Any]) -> str:
    """Reconstruction and cross-entropy, each with its baselines, and the protocol."""
    if not results:
        return ""
    parts = [_reconstruction_table(results["reconstruction"]), _cross_entropy_table(results)]
    protocol = definitions({**results["protocol"], **_models(results)})
    return f"{''.join(parts)}<details><summary>Protocol and models</summary>{protocol}</details>"


def reproduce(commands: Sequence[str], runs: Sequence[Run]) -> str:
    """The commands, and the resolved configuration of every run."""
    details = (
        f"<details><summary>{escape(run.name)}/config.yaml</summary>{_listing(run.config)}</details>"
        for run in runs
        if run.config
    )
    return f"{_listing(chr(10).join(commands))}{''.join(details)}"


def _listing(text: str) -> str:
    return f'<pre tabindex="0">{escape(text)}</pre>'


def _steps(trajectory: Trajectory, fps: float, name: str) -> str:
    width = trajectory.clips.shape[3] * enlargement(trajectory.clips.shape[3])
    pictures = [
        moving_picture(clip, fps, f"{name}, step {step}", width) for step, clip in enumerate(trajectory.clips, start=1)
    ]
    cells = []
    for index in _spread(
        len(pictures), max(2, TRAJECTORY_BYTES // MAX_TRAJECTORIES * len(pictures) // sum(map(len, pictures)))
    ):
        fixed = trajectory.fixed[index]
        label = f"<b>{index + 1}</b> <span>{int(fixed.sum())} of {fixed.size}</span>"
        grids = f'<div class="grids">{latent_grid(fixed)}</div>'
        cells.append(f"<figure>{pictures[index]}{grids}<figcaption>{label}</figcaption></figure>")
    return f'<div class="steps">{"".join(cells)}</div>'


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the indices below `count`, evenly, the first and the last among them."""
    shown = min(count, most)
    return [round(index * (count - 1) / max(1, shown - 1)) for index in range(shown)]


def _reconstruction_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    columns = {
        "psnr": "PSNR, dB",
        "psnr_moving": "where it moves, dB",
        "psnr_static": "where it stands still, dB",
        "ssim": "SSIM",
    }
    body = [
        [RECONSTRUCTION_WORDS.get(row, escape(row)), *(number(scores.get(key)) for key in columns)]
        for row, scores in rows.items()
    ]
    note = "A still picture is hard to beat where nothing moves, so moving pixels are counted apart. Higher is better."
    return f"<h3>Reconstruction</h3><p>{note}</p>{table('Reconstruction', ['', *columns.values()], body)}"


def _cross_entropy_table(results: Mapping[str, Any]) -> str:
    rows = {task: results.get("cross_entropy", {}).get(task) for task in TASK_WORDS}
    named = [
        (f'{TASK_WORDS[task][0]} <abbr class="code">{task}</abbr>', scores) for task, scores in rows.items() if scores
    ]
    if everything := results.get("class_conditional"):
        named.append(("From the class alone, all tokens masked", everything))
    if not named:
        return ""
    columns = ["commit", "per_position", "unigram"]
    body = [
        [name, *(number(scores.get(column)) for column in columns), _gain(scores["per_position"] - scores["commit"])]
        for name, scores in named
    ]
    note = (
        "Nats per masked token on held-out clips; lower is better. The frequency table per position knows how often "
        "each token occurs at each place of the training clips, and nothing else; the unigram knows only how often."
    )
    heads = ["", "COMMIT", "table per position", "unigram", "gain over the table"]
    return f"<h3>Masked-token cross-entropy</h3><p>{note}</p>{table('Masked-token cross-entropy', heads, body)}"


def _gain(nats: float) -> str:
    return f'<span class="{"passed" if nats > 0 else "failed"}">{nats:+.3f}</span>'


def _models(results: Mapping[str, Any]) -> dict[str, str]:
    return {f"{name} hash": value for name, value in results.get("models", {}).items()}
