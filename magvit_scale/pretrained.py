"""Models as files: a folder with config.json and model.safetensors, never a pickle."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from magvit_scale import hub
from magvit_scale.config import Refusal, load
from magvit_scale.files import sha256

Model = TypeVar("Model", bound=nn.Module)


def find_folder(name: str | Path) -> Path:
    """The folder of a model by the name that a user gives.

    Args:
        name: a path; or, where there is no such path, owner/name or owner/name/part of the Hugging Face hub, whose
            snapshot must be in the local cache: nothing is fetched.

    Raises:
        Refusal: there is neither; says which command fetches it.
    """
    path = Path(name)
    return path if path.exists() or not hub.NAME.fullmatch(str(name)) else hub.find_in_cache(str(name))


def save_model(model: nn.Module, config: Any, folder: str | Path, state: dict[str, Tensor] | None = None) -> None:
    """Writes `folder`/config.json and model.safetensors; each file aside, then renamed.

    Args:
        model: its parameters and buffers are written, unless `state` is given.
        config: the dataclass from which `model` was built.
        folder: made where missing.
        state: tensors to write in place of the model's own, for instance averaged ones.

    Raises:
        Refusal: a tensor has been rounded to 16 bits for computing, see `ComputeConfig.precision`.
    """
    folder, given = Path(folder), state or model.state_dict()
    if rounded := [t.dtype for t in given.values() if t.dtype in (torch.bfloat16, torch.float16)]:
        raise Refusal(
            f"{type(model).__name__} is in {rounded[0]}, expected float32: it has been rounded for computing; "
            "load it with compute.precision=fp32 to save it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t.detach().cpu().contiguous() for name, t in given.items()}
    try:
        save_file(tensors, folder / "model.tmp")
    except SafetensorError as error:  # safetensors' own word for a disk that is full
        raise OSError(f"{folder}: {error}; free some space and start again") from error
    os.replace(folder / "model.tmp", folder / "model.safetensors")
    (folder / "config.tmp").write_text(json.dumps({"model": type(model).__name__, **asdict(config)}, indent=1))
    os.replace(folder / "config.tmp", folder / "config.json")


def load_config(schema: type, folder: str | Path, kind: str) -> Any:
    """Reads the config.json of a model folder and checks that it is one of `kind` (a class name)."""
    path, values = Path(folder) / "config.json", _read_config(folder, kind)
    if (found := values.pop("model", None)) != kind:
        raise Refusal(f"{path}: is a {found}, expected a {kind}")
    try:
        return load(schema, [values])
    except Refusal as error:
        raise Refusal(f"{path}: {error}") from error


def kind_of(folder: str | Path) -> str:
    """Class name of the model in a folder."""
    return str(_read_config(folder, "model").get("model"))


def _read_config(folder: str | Path, kind: str) -> dict[str, Any]:
    path = find_folder(folder) / "config.json"
    if not path.is_file():
        parts = "; it holds parts, give one as FOLDER/tokenizer" if path.with_name("model_index.json").exists() else ""
        raise Refusal(f"{folder}: no config.json, expected the export folder of a {kind}{parts}")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:  # also of the encoding
        raise Refusal(f"{path}: {error}; expected the config.json of a {kind}") from error
    if not isinstance(values, dict):
        raise Refusal(f"{path}: holds a {type(values).__name__}, expected the settings of a {kind}")
    return values


def load_model(build: Callable[[Any], Model], schema: type, folder: str | Path) -> Model:
    """Builds the model that `folder` describes and fills every tensor of it; a missing or left-over tensor is
    refused.
    """
    model = build(load_config(schema, folder, build.__name__))
    fill(model, load_tensors(folder), folder)
    return model


def load_tensors(folder: str | Path) -> dict[str, Tensor]:
    """Reads `folder`/model.safetensors onto the CPU; `folder` as in `find_folder`."""
    path = find_folder(folder) / "model.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise Refusal(f"{path}: {error}; expected the weights of an export folder") from error


def fill(model: nn.Module, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Copies tensors into a model, strictly: the same names and shapes on both sides."""
    own = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    if wrong := sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name)):
        name = wrong[0]
        raise Refusal(
            f"{source}: {len(wrong)} tensors do not fit, the first is {name}: found {given.get(name, 'none')}, "
            f"expected {own.get(name, 'none')}"
        )
    model.load_state_dict(tensors)


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Shapes of a model's tensors by name; the model may be on the meta device."""
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def refuse_other_tokenizer(folder: str | Path, learnt: str | None) -> None:
    """Refuses a tokenizer's folder for a transformer that learnt the tokens of another, by `hash_model`; None: nobody
    knows of which.

    Raises:
        Refusal: they are not of one run, and its clips would be noise.
    """
    if learnt is not None and (found := hash_model(folder)) != learnt:
        raise Refusal(
            f"tokenizer={folder}: its weights are {found}, the transformer was trained on tokens of {learnt}; give "
            "that one"
        )


def hash_model(folder: str | Path) -> str:
    """sha256 of a model folder's weights: the name under which token shards remember their tokenizer."""
    return sha256(find_folder(folder) / "model.safetensors")
