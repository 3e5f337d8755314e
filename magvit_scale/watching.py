"""Evaluation beside a training run: each new checkpoint once, until the last step's."""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from magvit_scale.config import EvaluateConfig, Refusal, TrainCommitConfig
from magvit_scale.export import export_run
from magvit_scale.metrics.protocols import find_protocol
from magvit_scale.metrics.results import Result, read_result
from magvit_scale.run_record import read_training_config
from magvit_scale.training import distributed
from magvit_scale.training.ranks import Ranks
from magvit_scale.training.retention import is_complete, newest_first

END = "end"
MODEL = "{protocol}.model"
"""Sub-folder of a checkpoint's evaluation that holds its model while it is evaluated; other protocols' watchers have
theirs."""


def watch(config: EvaluateConfig, ranks: Ranks, evaluate: Callable[[EvaluateConfig, Ranks], Result]) -> None:
    """Evaluates checkpoints of `config.watch`, always the newest that has no result yet. Collective.

    Writes step_XXXXXXXX/PROTOCOL.json for each into evaluation/ of the run or into `config.output`, and all figures
    into tensorboard/ there. Started again it goes on with what has no result. Ends when the last step's has one.

    Raises:
        Refusal: the folder is no training run, or a checkpoint cannot be evaluated.
    """
    run, protocol = Path(str(config.watch)), find_protocol(config.protocol).name
    output = Path(config.output) if config.output else run / "evaluation"
    config = replace(config, output=str(output), statistics=config.statistics or str(output / "real"))
    if ranks.is_main:
        _finish(output, protocol)
    while (name := distributed.tell(_next(run, output, protocol) if ranks.is_main else "")) != END:
        if not name:
            time.sleep(config.watch_every_s)
            continue
        evaluate(_export(config, ranks, run, output / name / MODEL.format(protocol=protocol)), ranks)
        if ranks.is_main:
            _finish(output, protocol)


def _next(run: Path, output: Path, protocol: str) -> str:
    """Name of the newest complete checkpoint without a result; where all have one `END` after the last step's, before
    it nothing.
    """
    if not (run / "config.yaml").is_file():
        raise Refusal(f"watch={run}: no config.yaml, expected the folder of a training run")

    def has_result(name: str) -> bool:
        return (output / name / f"{protocol}.json").exists()

    for checkpoint in newest_first(run / "checkpoints"):
        if is_complete(checkpoint) and not has_result(checkpoint.name):
            return checkpoint.name
    last_step = read_training_config(run / "config.yaml").run.steps
    return END if has_result(f"step_{last_step:08d}") else ""


def _export(config: EvaluateConfig, ranks: Ranks, run: Path, model: Path) -> EvaluateConfig:
    """Makes a model of a checkpoint, and the configuration that evaluates it. Collective."""
    if ranks.is_main:
        export_run(run, _step(model.parent.name), model)
    distributed.barrier()
    config, trained = replace(config, output=str(model.parent)), read_training_config(run / "config.yaml")
    if isinstance(trained, TrainCommitConfig):
        return replace(config, transformer=str(model), tokenizer=config.tokenizer or trained.tokenizer)
    return replace(config, tokenizer=str(model))


def _finish(output: Path, protocol: str) -> None:
    """Shows results whose model is still there, and removes it: also what a kill left between the two."""
    for model in output.glob(f"step_*/{MODEL.format(protocol=protocol)}"):
        if (path := model.with_name(f"{protocol}.json")).exists():
            _show(output / "tensorboard", read_result(path), _step(model.parent.name))
            shutil.rmtree(model)


def _show(folder: Path, result: Result, step: int) -> None:
    with SummaryWriter(str(folder)) as writer:
        for name, figure in result.figures.items():
            writer.add_scalar(f"evaluation/{name}", figure.mean, step)
    sys.stdout.write(f"step {step} evaluated by {result.protocol}\n")


def _step(name: str) -> int:
    return int(name.removeprefix("step_"))
