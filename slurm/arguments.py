"""What a program's arguments say, without importing the program."""

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from magvit_scale.config import is_override
from slurm.stages import Call


def first_value(calls: Sequence[Call], key: str) -> Any:
    """The value of a key in the first of a stage's programs that is told it; None where none is."""
    values = (value(call.argv, key) for call in calls)
    return next((found for found in values if found is not None), None)


def value(argv: Sequence[str], key: str) -> Any:
    """The value of a key among `CONFIG... key=value ...`, the last one said; None where nothing is said of it."""
    files = [OmegaConf.load(argument) for argument in argv if not is_override(argument)]
    overrides = OmegaConf.from_dotlist([argument for argument in argv if is_override(argument)])
    return OmegaConf.select(OmegaConf.merge(*files, overrides), key)
