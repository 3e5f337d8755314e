"""Resolved configurations of stages, and with them whether their programs would take their arguments.

A process of its own reads [[program, argv], ...] on stdin: it imports what the programs import.
"""

import contextlib
import importlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence

from magvit_scale.config import Refusal
from slurm.stages import Call, Stage

OUR_PACKAGES = ("magvit_scale", "data_prep", "slurm")
"""Their programs know --show-config; another program might run instead."""


def resolve(stages: Sequence[Stage]) -> dict[tuple[str, Call], str]:
    """The configuration of every program that is ours, as YAML, by the stage's name and the call.

    Raises:
        Refusal: a program does not take its arguments.
    """
    ours = [(stage, call) for stage in stages for call in stage.calls if call.program.partition(".")[0] in OUR_PACKAGES]
    if not ours:
        return {}
    asked = json.dumps([[call.program, call.argv] for _, call in ours])
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "slurm.resolve"], input=asked, capture_output=True,
                          text=True, check=False)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"slurm.resolve ended with {done.returncode}: {done.stderr}")
    answers = json.loads(done.stdout.splitlines()[-1])
    resolved: dict[tuple[str, Call], str] = {}
    for (stage, call), (text, problem) in zip(ours, answers, strict=True):
        if problem:
            raise Refusal(f"stage {stage.name}: {call.program}: {problem}")
        resolved[stage.name, call] = text
    return resolved


def main() -> None:
    """Answers [[configuration, problem], ...] on the last line of stdout."""
    answers = [_ask(program, argv) for program, argv in json.load(sys.stdin)]
    sys.stdout.write(f"\n{json.dumps(answers)}\n")


def _ask(program: str, argv: Sequence[str]) -> tuple[str, str]:
    out = io.StringIO()
    main_of_program = importlib.import_module(program).main
    try:
        with contextlib.redirect_stdout(out):
            main_of_program([*argv, "--show-config"])
    except SystemExit as end:
        return out.getvalue(), str(end.code or "")
    except (Refusal, OSError) as error:
        return "", str(error)
    raise AssertionError(f"{program} does not end at --show-config")


if __name__ == "__main__":
    main()
