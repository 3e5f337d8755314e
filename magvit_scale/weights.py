"""The frozen networks' weights: which files, where they are looked for, and the check of what is found there.

Nothing here downloads. The files lie in one folder: that of the environment variable MAGVIT_WEIGHTS, or
~/.cache/magvit_scale/weights. A file counts by its sha256 and by nothing else.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from magvit_scale.config import Refusal
from magvit_scale.files import sha256

FOLDER_VARIABLE = "MAGVIT_WEIGHTS"
DEFAULT_FOLDER = "~/.cache/magvit_scale/weights"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One published file."""

    file: str
    url: str
    sha256: str
    num_bytes: int
    """As other projects' manifests print it; for messages only."""
    licence: str


WEIGHTS = {
    "vgg16-in1k-v1": Weights(
        file="vgg16-397923af.pth",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        num_bytes=553_433_881,
        licence="code BSD-3; weights: none stated, trained on ImageNet under its terms",
    ),
    "resnet50-v1": Weights(
        file="resnet50-0676ba61.pth",
        url="https://download.pytorch.org/models/resnet50-0676ba61.pth",
        sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        num_bytes=102_530_333,
        licence="code BSD-3; weights: none stated, trained on ImageNet under its terms",
    ),
}


def weights_folder() -> Path:
    """Where the files are looked for."""
    return Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER).expanduser()


def find_weights(name: str) -> Path:
    """The file of `WEIGHTS[name]`, after its content has been checked.

    Raises:
        Refusal: it is not in the folder, or is another file than the published one.
    """
    weights, folder = WEIGHTS[name], weights_folder()
    path = folder / weights.file
    if not path.is_file():
        raise Refusal(
            f"weights {name}: no file {weights.file} in {folder}; put {weights.url} (sha256 {weights.sha256}) there, "
            f"or set {FOLDER_VARIABLE} to the folder that has it"
        )
    if (found := sha256(path)) != weights.sha256:
        raise Refusal(
            f"weights {name}: {weights.file} in {folder} has sha256 {found} ({path.stat().st_size} bytes), expected "
            f"{weights.sha256} ({weights.num_bytes} bytes); put {weights.url} in its place"
        )
    return path
