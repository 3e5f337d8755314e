"""The frozen networks' weights: which files, where they are looked for, and the check of what is found there.

Nothing here downloads; `magvit fetch-weights` does, when asked. The files lie in one folder: that of the environment
variable MAGVIT_WEIGHTS, or ~/.cache/magvit_scale/weights. A file counts by its sha256 and by nothing else. Where nobody
has published one, that of the first file is kept in the folder's pins.json, and every later file must have it.
"""

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

from magvit_scale.config import Refusal
from magvit_scale.files import sha256, write_json

FOLDER_VARIABLE = "MAGVIT_WEIGHTS"
DEFAULT_FOLDER = "~/.cache/magvit_scale/weights"
PINS = "pins.json"
TORCHVISION = "code BSD-3; weights: none stated, trained on ImageNet under its terms"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """One published file."""

    file: str
    url: str
    sha256: str | None = None
    """None where nobody has published one: the first file is pinned."""
    git_blob: str | None = None
    """SHA-1 under which git repositories hold the file; what the first file is checked by where it is known."""
    num_bytes: int | None = None
    """As other projects' manifests print it; for messages only."""
    licence: str


WEIGHTS = {
    "vgg16-in1k-v1": Weights(
        file="vgg16-397923af.pth",
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        num_bytes=553_433_881,
        licence=TORCHVISION,
    ),
    "resnet50-v1": Weights(
        file="resnet50-0676ba61.pth",
        url="https://download.pytorch.org/models/resnet50-0676ba61.pth",
        sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
        num_bytes=102_530_333,
        licence=TORCHVISION,
    ),
    "i3d-ts": Weights(
        file="i3d_torchscript.pt",
        url="https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt?dl=1",
        sha256="bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2",
        num_bytes=51_235_320,
        licence="weights Apache-2.0 (DeepMind); this container: none stated",
    ),
    "i3d-sd": Weights(
        file="i3d_pretrained_400.pt",
        url="https://github.com/songweige/TATS/raw/main/tats/fvd/i3d_pretrained_400.pt",
        git_blob="a867b87ac3a9097d200598b1d48a1b890d8ec744",
        licence="weights Apache-2.0 (DeepMind); this container MIT",
    ),
    "c3d-ts": Weights(
        file="c3d_ucf101.pt",
        url="https://www.dropbox.com/s/jxpu7avzdc9n97q/c3d_ucf101.pt?dl=1",
        licence="none stated",
    ),
    "c3d-chainer": Weights(
        file="conv3d_deepnetA_ucf.npz",
        url="https://github.com/rezoo/tgan2/releases/download/v1.0/conv3d_deepnetA_ucf.npz",
        licence="MIT",
    ),
    "c3d-chainer-mean": Weights(
        file="mean2.npz",
        url="https://github.com/rezoo/tgan2/releases/download/v1.0/mean2.npz",
        licence="MIT",
    ),
}


def weights_folder() -> Path:
    """Where the files are looked for."""
    return Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER).expanduser()


def path_of(name: str) -> Path:
    """Where the file of `WEIGHTS[name]` belongs, there or not."""
    return weights_folder() / WEIGHTS[name].file


def find_weights(name: str) -> Path:
    """The file of `WEIGHTS[name]`, after its content has been checked.

    Raises:
        Refusal: it is not in the folder, is another file than the published or pinned one, or is not pinned yet.
    """
    weights, path = WEIGHTS[name], path_of(name)
    if not path.is_file():
        raise Refusal(
            f"weights {name}: no file {weights.file} in {path.parent}; run `magvit fetch-weights names=[{name}]`, or "
            f"put {weights.url} ({identity(name)}) there, or set {FOLDER_VARIABLE} to the folder that has it"
        )
    if expected_sha256(name) is None:
        raise Refusal(
            f"weights {name}: {path} is not pinned, and nobody has published its sha256; look where it comes from, and "
            f"run `magvit fetch-weights names=[{name}]` to pin it"
        )
    check(name, path, f"get {weights.url} in its place by `magvit fetch-weights names=[{name}]`")
    return path


def check(name: str, path: Path, advice: str) -> str:
    """Checks that a file is that of `WEIGHTS[name]`, by the strictest word there is about it: a published or pinned
    sha256, a git blob, or at the least that it is a whole zip archive, which every file without a hash is.

    Args:
        name: of the weights.
        path: of the file, anywhere.
        advice: ends the refusal.

    Returns:
        Its sha256.

    Raises:
        Refusal: it is not, with both values.
    """
    weights, sha, expected = WEIGHTS[name], sha256(path), expected_sha256(name)
    if expected is not None:
        found, is_right = f"has sha256 {sha}", sha == expected
    elif weights.git_blob is not None:
        found, is_right = f"is git blob {(blob := git_blob(path))}", blob == weights.git_blob
    else:
        found, is_right = "is no complete zip archive", zipfile.is_zipfile(path)
    if not is_right:
        size = path.stat().st_size
        raise Refusal(f"weights {name}: {path} {found} ({size} bytes), expected {identity(name)}; {advice}")
    return sha


def expected_sha256(name: str) -> str | None:
    """The published hash, or else the pinned one, or None where the first file has not come yet."""
    return WEIGHTS[name].sha256 or _read_pins().get(name)


def pin(name: str, found: str) -> None:
    """Keeps the sha256 of a file whose hash nobody has published."""
    write_json(weights_folder() / PINS, {**_read_pins(), name: found})


def git_blob(path: Path) -> str:
    """The SHA-1 under which git would hold a file, hexadecimal."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def identity(name: str) -> str:
    """What the right file is known by, for messages."""
    weights, expected = WEIGHTS[name], expected_sha256(name)
    size = f" ({weights.num_bytes} bytes)" if weights.num_bytes else ""
    if expected is not None:
        source = "" if weights.sha256 else f", pinned in {weights_folder() / PINS}"
        return f"sha256 {expected}{size}{source}"
    return (
        f"git blob {weights.git_blob}{size}" if weights.git_blob else "a zip archive whose sha256 nobody has published"
    )


def _read_pins() -> dict[str, str]:
    path = weights_folder() / PINS
    if not path.exists():
        return {}
    try:
        pins = json.loads(path.read_text())
    except ValueError as error:
        raise Refusal(f"{path}: {error}; expected what `magvit fetch-weights` writes, mend or remove it") from error
    if not (isinstance(pins, dict) and all(isinstance(value, str) for value in pins.values())):
        raise Refusal(f"{path}: expected an object of names and sha256; mend or remove it")
    return pins
