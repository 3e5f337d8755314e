"""From a launch configuration to its stages, with every argument filled in."""

import hashlib
import importlib.util
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from magvit_scale.config import STANDARD, LaunchConfig, ProgramConfig, Refusal, StageConfig
from slurm.arguments import value
from slurm.stages import Call, Stage

PLACEHOLDER = re.compile(r"\{(root|videos|scaled:(\d+))\}")
PLAIN_YAML = re.compile(r"[\w./~+-][\w./~+ ,=-]*(?<! )")
FOLDER_KEYS = ("run.folder", "output")
"""Keys of the folder that a program writes; every point of a sweep gets one of its own."""


def plan(config: LaunchConfig) -> list[Stage]:
    """The stages of this run in order, each with its final arguments; one for each element of an array.

    Raises:
        Refusal: a program or a configuration file is missing, `{videos}` is used without videos, a stage that is named
            does not exist, no stage is left.
    """
    chosen = _chosen(config)
    stages = []
    for name, stage in chosen.items():
        if name in config.sweep:
            stages += _swept(name, stage, config)
            break
        if stage.array > 1 and config.cluster == "slurm":
            stages += [_stage(f"{name}.{element}", name, stage, config) for element in range(stage.array)]
        else:
            stages.append(_stage(name, name, stage, config))
    return stages


def _chosen(config: LaunchConfig) -> dict[str, StageConfig]:
    for name in [*(config.only or ()), *config.sweep]:
        if name not in config.stages:
            raise Refusal(f"no stage {name}; expected one of {', '.join(config.stages)}")
    unwanted = "no_videos" if config.videos else "videos"
    chosen = {name: stage for name, stage in config.stages.items() if stage.when != unwanted}
    if not chosen:
        raise Refusal(f"no stage to run: all {len(config.stages)} have when={unwanted}; give at least one stage")
    return {name: stage for name, stage in chosen.items() if config.only is None or name in config.only}


def _stage(name: str, group: str, stage: StageConfig, config: LaunchConfig, more: Sequence[str] = ()) -> Stage:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise Refusal(f"stage name {name!r}: expected letters, digits, _ . -; rename it")
    if stage.then and stage.array > 1:
        raise Refusal(f"stage {name}: each of its {stage.array} elements would run what is in then; make that a stage")
    steps = [] if stage.steps is None else [f"run.steps={_scaled(stage.steps, config)}"]
    first = Call(stage.program, (*_arguments(name, stage, config, steps), *more), stage.alone)
    then = [Call(called.program, _arguments(name, called, config), called.alone) for called in stage.then]
    return Stage(
        name=name,
        group=group,
        calls=(first, *then),
        digest=_digest(name, [first, *then], [stage, *stage.then]),
        folder=str(Path(config.root, "stages").absolute()),
        config=stage,
        resources=stage.resources.over(config.resources).over(STANDARD),
    )


def _digest(name: str, calls: Sequence[Call], configs: Sequence[ProgramConfig]) -> str:
    digest = hashlib.sha256()
    for call, called in zip(calls, configs, strict=True):
        _require_program(name, call.program)
        digest.update(json.dumps([call.program, call.argv, *(["alone"] if call.alone else [])]).encode())
        for path in called.configs:
            digest.update(_content(name, path))
    return digest.hexdigest()


def _swept(name: str, stage: StageConfig, config: LaunchConfig) -> list[Stage]:
    """The stage for every combination of the sweep's values, then the table of what came out."""
    overrides = [override.partition("=") for override in stage.overrides]
    found = next(((key, folder) for key, _, folder in overrides if key in FOLDER_KEYS), None)
    if found is None:
        raise Refusal(f"sweep.{name}: the stage sets none of {', '.join(FOLDER_KEYS)}, which names each point's folder")
    folder_key, folder = found
    values = _flat(config.sweep[name])
    points = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
    owns = [_fill_in(name, f"{folder_key}={folder}_sweep/{_label(point)}", config) for point in points]
    folders = [value([own], folder_key) for own in owns]
    if twice := [path for path in folders if folders.count(path) > 1]:
        raise Refusal(f"sweep.{name}: two points have the folder {twice[0]}; take out what is given twice")
    stages = []
    for number, (point, own) in enumerate(zip(points, owns, strict=True)):
        settings = [f"{key}={json.dumps(setting)}" for key, setting in point.items()]
        # What follows in a point's processes is left out, as the stages behind it are.
        stages.append(_stage(f"{name}.{number}", name, replace(stage, then=()), config, [*settings, own]))
    arguments = (f"runs={json.dumps(folders)}", f"output={folder}_sweep/table.md")
    table = StageConfig(program="slurm.compare_runs", overrides=arguments)
    return [*stages, replace(_stage(f"{name}_table", f"{name}_table", table, config), needs_success=False)]


def _label(point: Mapping[str, Any]) -> str:
    """`learning_rate=0.001,num_layers=2`, for a folder's name."""
    label = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in point.items())
    return re.sub(r"[^\w.,=+-]", "_", label)


def _flat(tree: Any, prefix: str = "") -> dict[str, list[Any]]:
    """{optim: {learning_rate: [1, 2]}} -> {optim.learning_rate: [1, 2]}."""
    if isinstance(tree, list):
        return {prefix: tree}
    if not isinstance(tree, Mapping):
        raise Refusal(f"sweep {prefix}={tree}: expected a list of values, [A,B]")
    return {
        name: values
        for key, part in tree.items()
        for name, values in _flat(part, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _require_program(name: str, program: str) -> None:
    try:
        is_there = importlib.util.find_spec(program) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        raise Refusal(f"stage {name}: no module {program}; give a module with main(argv) and start in the repository")


def _content(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Refusal(f"stage {name}: cannot read {path} ({error.strerror}); start in the repository") from error


def _arguments(name: str, called: ProgramConfig, config: LaunchConfig, steps: Sequence[str] = ()) -> tuple[str, ...]:
    overrides = [_fill_in(name, override, config) for override in called.overrides]
    last = [_fill_in(name, override, config) for override in called.overrides_with_videos if config.videos]
    return (*called.configs, *overrides, *steps, *last)


def _fill_in(name: str, override: str, config: LaunchConfig) -> str:
    def replacement(match: re.Match[str]) -> str:
        if match[2]:
            return str(_scaled(int(match[2]), config))
        found = config.root if match[1] == "root" else config.videos
        if not found:
            raise Refusal(f"stage {name}: {override} needs videos, and none are given; give videos=FOLDER")
        return found

    key, _, text = override.partition("=")
    filled = PLACEHOLDER.sub(replacement, text)
    # The program reads values as YAML, where ` #` or `: ` in a folder's name would end it. Lists quote their own items.
    needs_quotes = filled != text and text[:1] not in "[\"'" and not PLAIN_YAML.fullmatch(filled)
    return f"{key}={json.dumps(filled, ensure_ascii=False) if needs_quotes else filled}"


def _scaled(steps: int, config: LaunchConfig) -> int:
    return max(1, round(steps * config.minutes / config.reference_minutes))
