"""Models by a protocol -> a result file: `magvit evaluate CONFIG... [key=value ...] [--watch RUN]`.

The protocol decides which real clips, how many generated ones, how both reach the feature network and what is
computed; the result holds all of it with the hashes of models, weights and data. Runs alone, under torchrun or srun:
every clip is one rank's. Nothing is written before everything is measured.
"""

import hashlib
import json
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from magvit_scale import compare_results
from magvit_scale.config import EvaluateConfig, Refusal, dump, parse
from magvit_scale.evaluation import Evaluation, choose_tasks, measure, open_evaluation, open_real_sets
from magvit_scale.files import write_json
from magvit_scale.metrics.protocols import find_protocol
from magvit_scale.metrics.results import Result, build_result, read_result, write_result
from magvit_scale.pretrained import hash_model
from magvit_scale.real_set import RealSet
from magvit_scale.training import distributed
from magvit_scale.training.ranks import Ranks
from magvit_scale.watching import watch

MEASURED = "measured"
"""Folder of the figures of finished tasks, until there is a result."""


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluates; see the module's text. Collective: every rank must call."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--compare" in arguments:
        compare_results.main([word for word in arguments if word != "--compare"])
        return
    if "--watch" in arguments[:-1]:
        place = arguments.index("--watch")
        arguments[place : place + 2] = [f"watch={arguments[place + 1]}"]
    config = parse(EvaluateConfig, arguments)
    ranks = distributed.start()
    if config.watch is None:
        evaluate(config, ranks)
    else:
        watch(config, ranks, evaluate)
    distributed.stop()


def evaluate(config: EvaluateConfig, ranks: Ranks) -> Result:
    """Measures, and writes PROTOCOL.json on the main rank. Started again after an interruption it goes on with the task
    that it was at. Collective.

    Raises:
        Refusal: protocol, models, data and weights do not go together, or a figure is not finite.
    """
    protocol, output = find_protocol(config.protocol), Path(config.output or "evaluation")
    evaluation = open_evaluation(config, protocol, ranks)
    models = {kind: hash_model(folder) for kind, folder in folders_of(config).items()}  # of what was loaded just now
    tasks = choose_tasks(config, protocol, evaluation.pipeline)
    sets = open_real_sets(evaluation, tasks)
    refuse_to_drop_figures(output / f"{protocol.name}.json", tasks)
    if ranks.is_main:
        output.mkdir(parents=True, exist_ok=True)  # or fails now, not after hours
    folds: dict[str, list[float]] = {}
    for task in tasks:
        real = sets[protocol.real_clips(task)]
        folds |= measure_once(evaluation, task, real, models, output)
    result = build_result(
        protocol,
        folds=folds,
        weights=evaluation.networks.weights,
        models=models,
        decoding=evaluation.decoding if evaluation.pipeline else None,
        seeds=dict.fromkeys(("clips", "generation"), evaluation.seed),
        data=real.facts(),
        device=name_of(ranks.device),
    )
    if ranks.is_main:
        path = output / f"{protocol.name}.json"
        dump(config, path.with_name("config.yaml"))
        write_result(path, result)
        shutil.rmtree(output / MEASURED)
        sys.stdout.write(compare_results.compare({str(path): result}))
    return result


def refuse_to_drop_figures(path: Path, tasks: Sequence[str]) -> None:
    """Refuses to put a result in the place of one that has figures of more tasks, or of what is no result.

    Raises:
        Refusal: it would.
    """
    if not path.exists():
        return
    there = {name.split("/")[0] for name in read_result(path).figures}
    if lost := sorted(there - set(tasks)):
        raise Refusal(
            f"{path}: holds figures of {', '.join(lost)}, this evaluation is of {', '.join(tasks)}; give "
            "another output= or all of these tasks"
        )


def measure_once(
    evaluation: Evaluation, task: str, real: RealSet, models: dict[str, str], output: Path
) -> dict[str, list[float]]:
    """The figures of a task: those of an interrupted start, or measured now and kept until the result is there.
    Collective.
    """
    ranks, networks = evaluation.ranks, evaluation.networks
    decided_by = [evaluation.protocol.hash, task, models, networks.weights, asdict(evaluation.decoding)]
    digest = hashlib.sha256(json.dumps([*decided_by, evaluation.seed, real.facts()]).encode()).hexdigest()
    path = output / MEASURED / f"{task}_{digest[:16]}.json"
    kept = distributed.tell(path.read_text() if ranks.is_main and path.exists() else "")
    if kept:
        return json.loads(kept)
    if not real.statistics:
        real.measure(evaluation.config, output / "real", networks, ranks, evaluation.sum_over_ranks)
    found = measure(evaluation, task, real)
    if ranks.is_main:
        path.parent.mkdir(exist_ok=True)
        write_json(path, found)
    return found


def folders_of(config: EvaluateConfig) -> dict[str, str]:
    """The model folders by kind."""
    folders = {"tokenizer": config.tokenizer, "transformer": config.transformer}
    return {kind: folder for kind, folder in folders.items() if folder}


def name_of(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
