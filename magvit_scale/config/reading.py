"""How a configuration is read, written and explained.

A configuration is YAML files merged left to right, then `key.sub=value` overrides, checked against a closed frozen
dataclass: an unknown key, a wrong type or a bad literal is an error that names the key. The string under each field
is its meaning and unit; `magvit VERB --help` prints it.
"""

import ast
import inspect
import itertools
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

Config = TypeVar("Config")
Source = str | Path | dict[str, Any]


class Refusal(ValueError):
    """Bad input, said in one line: what was found, what was expected, what to do. Programs end with it and status 1."""


def parse(schema: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Reads `CONFIG... [key=value ...]`; without arguments of its own it takes the command line's. `--help` explains
    the keys, `--show-config` prints what is read; both end the program.

    Raises:
        Refusal: see `load`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        print(describe(schema))  # noqa: T201
        raise SystemExit(0)
    overrides = [argument for argument in arguments if is_override(argument)]
    files = [argument for argument in arguments if not is_override(argument) and argument != "--show-config"]
    config = load(schema, files, overrides)
    if "--show-config" in arguments:
        print(to_yaml(config), end="")  # noqa: T201
        raise SystemExit(0)
    return config


def is_override(argument: str) -> bool:
    """Whether an argument is key=value and not a file, whose folder may be that of a point of a sweep:
    `runs/train_sweep/rate=0.1/config.yaml`.
    """
    key, equals, _ = argument.partition("=")
    return bool(equals) and "/" not in key


def refuse_below_one(part: str, values: Mapping[str, int]) -> None:
    """Refuses counts and sizes that are not at least 1, by name."""
    for name, value in values.items():
        if value < 1:
            raise Refusal(f"{part}.{name}={value}: expected at least 1")


@contextmanager
def refusals_end_the_program(program: str) -> Iterator[None]:
    """Turns bad input and a failing disk into one line on stderr and exit status 1; a defect keeps its traceback."""
    try:
        yield
    except (Refusal, OSError) as error:
        raise SystemExit(f"{program}: {error}") from error


def load(schema: type[Config], sources: Sequence[Source], overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration: YAML files (or plain dictionaries) merged left to right, then `key.sub=value` overrides.

    Raises:
        Refusal: a file is missing or no YAML, a key is unknown or missing, a value has the wrong type.
    """
    merged = _merge(schema, sources, overrides)
    _refuse_missing(schema, sorted(OmegaConf.missing_keys(merged)))
    return _build(schema, OmegaConf.to_container(merged, resolve=True))


def load_part(schema: type, part: str, sources: Sequence[Source], overrides: Sequence[str] = ()) -> Any:
    """Reads one field of a configuration, as `load`; the other fields are checked too but need no values."""
    merged = _merge(schema, sources, overrides)
    _refuse_missing(schema, sorted(key for key in OmegaConf.missing_keys(merged) if key.split(".")[0] == part))
    return _build(get_type_hints(schema)[part], OmegaConf.to_container(merged[part], resolve=True))


def _merge(schema: type, sources: Sequence[Source], overrides: Sequence[str]) -> Any:
    merged = OmegaConf.structured(schema)
    for source in [*sources, *([override] for override in overrides)]:
        name = source[0] if isinstance(source, list) else str(source) if isinstance(source, str | Path) else "config"
        try:
            merged = OmegaConf.merge(merged, _read(source))
        except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
            raise Refusal(f"{name}: {_first_lines(error)}") from error
    return merged


def _refuse_missing(schema: type, missing: Sequence[str]) -> None:
    if missing:
        raise Refusal(f"{schema.__name__}: no value for {', '.join(missing)}; give a YAML file or KEY=VALUE")


def _read(source: Source | list[str]) -> Any:
    if isinstance(source, str | Path):
        return OmegaConf.load(source)
    return OmegaConf.from_dotlist(source) if isinstance(source, list) else OmegaConf.create(source)


def dump(config: Any, path: str | Path) -> None:
    """Writes a configuration as YAML that `load` reads back to an equal one."""
    Path(path).write_text(to_yaml(config))


def to_yaml(config: Any) -> str:
    """The text that `dump` writes."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def describe(schema: type) -> str:
    """The help text of a configuration: every key with type, default and meaning."""
    summary = (schema.__doc__ or "").strip()
    keys = "keys (KEY=VALUE, or in a YAML file; --show-config prints them all as they are read):"
    return "\n".join([summary, "", keys, *_describe_fields(schema, "")])


def _describe_fields(schema: Any, prefix: str) -> Iterator[str]:
    hints, meanings = get_type_hints(schema), _field_docstrings(schema)
    for item in fields(schema):
        hint, default = hints[item.name], item.default
        if is_dataclass(hint):
            yield from _describe_fields(hint, f"{prefix}{item.name}.")
            continue
        if get_origin(hint) is dict and is_dataclass(entry := get_args(hint)[1]):
            yield from _describe_fields(entry, f"{prefix}{item.name}.NAME.")
            continue
        if item.default_factory is not MISSING:
            default = item.default_factory()
        value = "required" if default is MISSING else f"default {default!r}"
        allowed = (
            " | ".join(map(str, get_args(hint)))
            if get_origin(hint) is Literal
            else getattr(hint, "__name__", str(hint))
        )
        yield f"  {prefix}{item.name}  ({allowed}; {value})"
        if meaning := meanings.get(item.name):
            yield textwrap.indent(textwrap.fill(meaning, 112), "      ")


def _field_docstrings(schema: type) -> dict[str, str]:
    bodies = [
        ast.parse(textwrap.dedent(inspect.getsource(part))).body[0].body  # type: ignore[attr-defined]
        for part in reversed(schema.__mro__)
        if is_dataclass(part)
    ]
    return {
        ast.unparse(item.target): " ".join(ast.literal_eval(text.value).split())
        for body in bodies
        for item, text in itertools.pairwise(body)
        if isinstance(item, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _build(schema: type[Config], values: Any) -> Config:
    hints = get_type_hints(schema)
    names = [item.name for item in fields(schema)]  # type: ignore[arg-type]
    return schema(**{name: _build_value(hints[name], values[name]) for name in names})


def _build_value(hint: Any, value: Any) -> Any:
    if is_dataclass(hint):
        return _build(hint, value)  # type: ignore[arg-type]
    entry = next((part for part in get_args(hint) if is_dataclass(part)), None)
    if entry is not None and isinstance(value, dict):
        if get_origin(hint) is dict:
            return {name: _build(entry, part) for name, part in value.items()}  # type: ignore[arg-type]
        return _build(entry, value)  # type: ignore[arg-type]
    if isinstance(value, list | tuple):
        # OmegaConf neither checks nor completes what stands in a tuple.
        return tuple(load(entry, [part]) if entry else part for part in value)  # type: ignore[arg-type]
    return value


def _first_lines(error: Exception) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines()[:2] if line.strip())
