"""The Hugging Face hub through its own package, which is optional: what its cache holds, and the upload. No torch.

The access token, the cache's place and the address are the package's own affair: `hf auth login`, HF_HOME,
HF_ENDPOINT. Nothing is fetched here.
"""

import re
from pathlib import Path
from typing import Any

from magvit_scale.config import Refusal

_WORD = r"\w(?:[\w.-]*\w)?"
NAME = re.compile(rf"(?P<repository>{_WORD}/{_WORD})(?P<part>(?:/{_WORD})*)", re.ASCII)
INSTALL = "pip install huggingface_hub"


def find_in_cache(name: str) -> Path:
    """The folder of a model that was fetched before; asks no server.

    Args:
        name: owner/name, or owner/name/part for a folder in it.

    Raises:
        Refusal: it is not in the cache, or the package is missing.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise Refusal(f"{name}: no such folder; expected one, or owner/name[/part] of the Hugging Face hub")
    repository, part = found["repository"], found["part"].lstrip("/")
    fetch = f"hf download {repository}"
    hub = _package(f"{name}: no such folder; if it is one of the Hugging Face hub", then=f", then {fetch}")
    try:
        return Path(hub.snapshot_download(repository, local_files_only=True)) / part
    except (OSError, ValueError) as error:  # not cached, cached in part, or no name the hub could have
        raise Refusal(
            f"{name}: no such folder, and no whole {repository} in the cache of the Hugging Face hub; look at the "
            f"path, or fetch it: {fetch}"
        ) from error


def upload(folder: Path, name: str, files: list[str], message: str) -> str:
    """Makes one commit of files to a model repository, which is made where missing; returns its address.

    Args:
        folder: of the files.
        name: owner/name.
        files: paths under `folder`; no others are sent.
        message: of the commit.

    Raises:
        Refusal: the package is missing, or the hub refuses.
    """
    hub = _package(f"push={name}")
    try:
        hub.create_repo(name, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, allow_patterns=files, commit_message=message)
    except (OSError, ValueError, hub.errors.HTTPError) as error:  # the last also where there is no network
        reason = " ".join(str(error).split())
        raise Refusal(
            f"push={name}: {reason}; {folder} is complete, push again (hf auth login gives a token)"
        ) from error
    return f"{hub.constants.ENDPOINT}/{name}"


def refuse_impossible(name: str) -> None:
    """Refuses before any work what `upload` could only refuse at its end.

    Raises:
        Refusal: no owner/name, or the package is missing.
    """
    found = NAME.fullmatch(name)
    if found is None or found["part"]:
        raise Refusal(f"push={name}: expected owner/name of the Hugging Face hub")
    _package(f"push={name}")


def _package(purpose: str, then: str = "") -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors  # loaded with it or not, as its version has it
    except ImportError as error:
        raise Refusal(f"{purpose}: the package huggingface_hub is not installed; {INSTALL}{then}") from error
    return huggingface_hub
