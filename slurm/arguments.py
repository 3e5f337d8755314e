"""What a program's arguments say, without importing the program."""

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from magvit_scale.config import is_override


def value(argv: Sequence[str], key: str) -> Any:
    """The value of a key among `CONFIG... key=value ...`, the last one said; None where nothing is said of it."""
    files = [OmegaConf.load(argument) for argument in argv if not is_override(argument)]
    overrides = OmegaConf.from_dotlist([argument for argument in argv if is_override(argument)])
    return OmegaConf.select(OmegaConf.merge(*files, overrides), key)
