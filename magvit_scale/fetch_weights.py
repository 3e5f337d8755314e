"""The frozen networks' weights -> the folder of MAGVIT_WEIGHTS: `magvit fetch-weights names=[i3d-ts]`.

Alone, or with --list, it shows what there is and what is here. mirror=URL takes the files from elsewhere, file=PATH
from this machine. Whatever the road, a file takes its place after its content has been checked, or not at all.
"""

import difflib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from magvit_scale.config import FetchWeightsConfig, Refusal, parse, refusals_end_the_program
from magvit_scale.download import download
from magvit_scale.files import only_process, sha256
from magvit_scale.progress import aligned
from magvit_scale.weights import WEIGHTS, check, expected_sha256, path_of, pin, weights_folder

SHOWN_DIGITS = 16
HEAD = ("name", "file", "bytes", "sha256", "here", "licence")


def main(argv: Sequence[str] | None = None) -> None:
    """Lists or fetches.

    Raises:
        Refusal: an unknown name, a file that cannot be had, or one that is another than expected.
    """
    arguments = sys.argv[1:] if argv is None else argv
    config = parse(FetchWeightsConfig, ["list=true" if word == "--list" else word for word in arguments])
    refuse_unknown(config.names)
    if config.list or not config.names:
        print(table(config.names or tuple(WEIGHTS)))  # noqa: T201
        return
    folder = weights_folder()
    with only_process(folder / "fetch.lock", f"{folder}: another fetch-weights is at work here; wait until it ends"):
        for name in config.names:
            fetch(name, config)


def refuse_unknown(names: Sequence[str]) -> None:
    """Refuses a name that is not in the list."""
    for name in names:
        if name not in WEIGHTS:
            near = difflib.get_close_matches(name, WEIGHTS, n=2) or WEIGHTS
            raise Refusal(f"names={name}: no such weights, expected one of {', '.join(near)}")


def fetch(name: str, config: FetchWeightsConfig) -> None:
    """Brings one file into its place, unless the right one is there; prints what it did.

    Raises:
        Refusal: it cannot be had, or is not what was expected; nothing is put in place then.
    """
    path, found = path_of(name), state(name)
    if found == "right":
        print(f"{name}: {path} is here and right")  # noqa: T201
        return
    if found == "not pinned" and config.file is None:
        _pin_where_unpublished(name, check(name, path, "remove it and run again"))
        return
    partial = path.with_name(path.name + ".part")
    origin = _bring(name, partial, config)
    _adopt(name, partial, origin)


def state(name: str) -> str:
    """`right`, `wrong`, `missing`, or `not pinned` where a file is here whose hash nobody knows yet."""
    path, expected = path_of(name), expected_sha256(name)
    if not path.is_file():
        return "missing"
    if expected is None:
        return "not pinned"
    return "right" if sha256(path) == expected else "wrong"


def table(names: Sequence[str]) -> str:
    """What there is and what is here, as aligned text."""
    return "\n".join([f"folder: {weights_folder()}", *aligned([HEAD, *map(_row, names)])])


def _row(name: str) -> tuple[str, ...]:
    weights, expected = WEIGHTS[name], expected_sha256(name)
    digits = f"{expected[:SHOWN_DIGITS]}..." if expected else ""
    known = digits if weights.sha256 else f"pinned {digits}" if expected else "not pinned"
    size = f"{weights.num_bytes:,}" if weights.num_bytes else "?"
    return name, weights.file, size, known, state(name), weights.licence


def _bring(name: str, partial: Path, config: FetchWeightsConfig) -> str:
    """Writes the whole file aside; returns where from."""
    if config.file is not None:
        shutil.copyfile(Path(config.file).expanduser(), partial)
        return config.file
    weights = WEIGHTS[name]
    url = f"{config.mirror.rstrip('/')}/{weights.file}" if config.mirror else weights.url
    download(url, partial, is_continued=bool(expected_sha256(name) or weights.git_blob))
    return url


def _adopt(name: str, partial: Path, origin: str) -> None:
    """Puts a file that was written aside in its place if it is the right one, and away if it is not."""
    try:
        found = check(name, partial, f"it came from {origin} and was not kept; give mirror=URL or file=PATH")
    except Refusal:
        partial.unlink()
        raise
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path_of(name))
    print(f"{name}: {path_of(name)} from {origin}, sha256 {found}")  # noqa: T201
    _pin_where_unpublished(name, found)


def _pin_where_unpublished(name: str, found: str) -> None:
    if expected_sha256(name) is None:
        pin(name, found)
        print(f"{name}: sha256 {found} is pinned from now on; nobody has published one to compare it with")  # noqa: T201


if __name__ == "__main__":
    with refusals_end_the_program("fetch-weights"):
        main()
