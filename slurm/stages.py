"""What a chain is: its stages with every argument filled in, and what the run folder says about each of them."""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magvit_scale.config import LaunchConfig, Refusal, StageConfig

PLACEHOLDER = re.compile(r"\{(root|videos|scaled:(\d+))\}")
PLAIN_YAML = re.compile(r"[\w./~+-][\w./~+ -]*(?<! )")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A program with its final arguments, and where the run folder keeps its state."""

    name: str
    program: str
    argv: tuple[str, ...]
    digest: str
    """sha256 of the program, its arguments and the content of its configuration files."""
    folder: str
    """`{root}/stages`, absolute."""
    config: StageConfig

    @property
    def marker(self) -> Path:
        """Written once, when every process of the stage has ended well."""
        return Path(self.folder, f"{self.name}.json")

    @property
    def started_marker(self) -> Path:
        """Written before the stage's first process starts."""
        return Path(self.folder, f"{self.name}.started.json")

    @property
    def logs(self) -> Path:
        """Folder of the logs of every process and every attempt."""
        return Path(self.folder, "logs", self.name)

    @property
    def is_finished(self) -> bool:
        """Whether the marker is there; `refuse_changes` has to have accepted it."""
        return self.marker.exists()

    def record(self, **more: Any) -> dict[str, Any]:
        """The content of a marker."""
        return {"program": self.program, "argv": list(self.argv), "sha256": self.digest, **more}


def plan(config: LaunchConfig) -> list[Stage]:
    """The stages of this run in order, each with its final arguments.

    Raises:
        Refusal: a program or a configuration file is missing, `{videos}` is used without videos, no stage is left.
    """
    unwanted = "no_videos" if config.videos else "videos"
    stages = [_stage(name, stage, config) for name, stage in config.stages.items() if stage.when != unwanted]
    if not stages:
        raise Refusal(f"no stage to run: all {len(config.stages)} have when={unwanted}; give at least one stage")
    return stages


def refuse_changes(stage: Stage) -> None:
    """Stops a run folder from being continued with other arguments than it was begun with.

    Raises:
        Refusal: the stage was finished or started with other arguments or configuration files.
    """
    for marker, verb in ((stage.marker, "finished"), (stage.started_marker, "started")):
        if marker.exists() and _read_marker(marker)["sha256"] != stage.digest:
            root = Path(stage.folder).parent
            raise Refusal(
                f"stage {stage.name} was {verb} with other arguments or configuration files ({marker}); "
                f"repeat the first command, or give another root=, or delete {root}"
            )


def recorded_seconds(stage: Stage) -> float:
    """Seconds that the stage's last attempt took, from its marker."""
    return float(_read_marker(stage.marker)["seconds"])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file aside and renames it, so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(aside, path)


def _read_marker(marker: Path) -> dict[str, Any]:
    try:
        record = json.loads(marker.read_text())
        return {"sha256": record["sha256"], "seconds": record.get("seconds", 0.0)}
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{marker} is no stage marker ({error!r}); delete it and the stage runs again") from error


def _stage(name: str, stage: StageConfig, config: LaunchConfig) -> Stage:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise Refusal(f"stage name {name!r}: expected letters, digits, _ . -; rename it")
    _require_program(name, stage.program)
    argv = (*stage.configs, *_arguments(name, stage, config))
    digest = hashlib.sha256(json.dumps([stage.program, argv]).encode())
    for path in stage.configs:
        digest.update(_content(name, path))
    folder = str(Path(config.root, "stages").absolute())
    return Stage(name=name, program=stage.program, argv=argv, digest=digest.hexdigest(), folder=folder, config=stage)


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


def _arguments(name: str, stage: StageConfig, config: LaunchConfig) -> Iterator[str]:
    for override in stage.overrides:
        yield _fill_in(name, override, config)
    if stage.steps is not None:
        yield f"run.steps={_scaled(stage.steps, config)}"
    if config.videos:
        for override in stage.overrides_with_videos:
            yield _fill_in(name, override, config)


def _fill_in(name: str, override: str, config: LaunchConfig) -> str:
    def value(match: re.Match[str]) -> str:
        if match[2]:
            return str(_scaled(int(match[2]), config))
        found = config.root if match[1] == "root" else config.videos
        if not found:
            raise Refusal(f"stage {name}: {override} needs videos, and none are given; give videos=FOLDER")
        return found

    key, _, text = override.partition("=")
    filled = PLACEHOLDER.sub(value, text)
    # The program reads values as YAML, where ` #` or `: ` in a folder's name would end it. Lists quote their own items.
    needs_quotes = filled != text and text[:1] not in "[\"'" and not PLAIN_YAML.fullmatch(filled)
    return f"{key}={json.dumps(filled, ensure_ascii=False) if needs_quotes else filled}"


def _scaled(steps: int, config: LaunchConfig) -> int:
    return max(1, round(steps * config.minutes / config.reference_minutes))
