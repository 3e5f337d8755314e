"""Foreign WebDataset tars: where their samples lie, by walking the headers once. No torch.

No video is read and nothing is unpacked: a member's name is only ever a key. What a tar holds beside whole samples
(links, names that leave the folder, a key twice, metadata without a video, a cut end) is listed in its index as a
reject with its reason. Indexes are kept in a folder `magvit_index` beside the tars, or in the cache.
"""

import hashlib
import itertools
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from braceexpand import braceexpand

from magvit_scale.config import Refusal
from magvit_scale.data.frames import Encoding
from magvit_scale.data.remote import cache_folder
from magvit_scale.tar_headers import Member, TarDamage, walk

MAX_METADATA = 1 << 16
MAX_TARS = 1_000_000
MAX_LABEL = 100
MAX_CLASSES = 1 << 16
ENCODINGS: dict[str, Encoding] = {
    **dict.fromkeys(("mp4", "avi", "webm", "mkv", "mov", "m4v"), "video"),
    **dict.fromkeys(("jpg", "jpeg", "png", "webp"), "image"),
    "npy": "npy",
}
METADATA = ("cls", "json", "txt")
TEST_WORDS = ("test", "val", "valid", "validation", "eval")


@dataclass(frozen=True)
class IndexedTar:
    """One tar and its index.

    Attributes:
        path: of the tar.
        num_bytes: size of the tar.
        mtime_ns: of the tar; another one means another content.
        split: `test` where the folder's name or a word of the file's says so, else `train`.
        count: samples.
        labels: class names found, with the class id where the tar gives one, else -1.
        num_rejects: entries that are no sample.
        index: JSON with `samples` and `rejects`.
    """

    path: Path
    num_bytes: int
    mtime_ns: int
    split: str
    count: int
    labels: Mapping[str, int]
    num_rejects: int
    index: Path


@dataclass(frozen=True)
class IndexedTars:
    """All tars of a folder or pattern.

    Attributes:
        folder: of the indexes.
        classes: names by class id.
        hash: of the names and sizes.
        tars: in the order of their names.
    """

    folder: Path
    classes: tuple[str, ...]
    hash: str
    tars: tuple[IndexedTar, ...]


def is_tars(source: str | Path) -> bool:
    """Whether a path is a folder with tars in it or in its sub-folders, a tar, or a brace pattern of tars."""
    path = Path(source)
    if path.is_dir():
        return next(itertools.chain(path.glob("*.tar"), path.glob("*/*.tar")), None) is not None
    return str(source).endswith(".tar")


def index_tars(source: str | Path, cache: str | None = None) -> IndexedTars:
    """Indexes tars; those whose index is up to date are not read.

    Args:
        source: a folder, its tars or those of its sub-folders; a tar; or a pattern like `train-{000..099}.tar`.
        cache: folder for the indexes where the tars' own cannot be written.

    Raises:
        Refusal: a tar of the pattern is missing, no tars, or no samples in them.
    """
    paths = _find(source)
    folder = _index_folder(paths, cache)
    known = _known(folder)
    before = dict(known)
    tars = [_open(path, number, folder, known) for number, path in enumerate(paths)]
    if known != before:
        _write(folder / "tars.json", known)
    num_rejects, count = sum(tar.num_rejects for tar in tars), sum(tar.count for tar in tars)
    if num_rejects:
        _tell(f"{source}: {num_rejects} entries are no samples and left out; the reasons are in {folder}")
    if not count:
        raise Refusal(f"shards={source}: no samples in {len(tars)} tars; expected members like KEY.mp4 and KEY.cls")
    facts = [[tar.path.name, tar.num_bytes, tar.count] for tar in tars]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return IndexedTars(folder, _classes(tars), digest, tuple(tars))


def index_tar(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The samples of one tar, as lines of an index, and what is none, with reasons.

    Metadata (`cls`, else `label` and `class_id` of `json`, else a short `txt`) name the class; a video's length is
    left to the reader.
    """
    samples: list[dict[str, Any]] = []
    rejects: list[dict[str, str]] = []
    seen: set[str] = set()
    with path.open("rb") as file:
        for key, members in _grouped(file, rejects):
            reason = "the key was there before" if key in seen else _refuse_members(members)
            if reason:
                rejects.append({"key": key, "reason": reason})
            else:
                samples.append(_describe(file, key, members, rejects))
            seen.add(key)
    return samples, rejects


def _grouped(file: IO[bytes], rejects: list[dict[str, str]]) -> Iterator[tuple[str, list[tuple[str, Member]]]]:
    """Consecutive members of one key, as WebDataset groups them: a key ends at the first dot of the file name."""

    def named() -> Iterator[tuple[str, str, Member]]:
        try:
            for member in walk(file, needs_end_mark=False):
                place = PurePosixPath(member.name)
                stem, _, extension = place.name.partition(".")
                if reason := _refuse_member(member, place):
                    rejects.append({"key": member.name[:1000], "reason": reason})
                elif member.kind != b"5":
                    yield str(place.with_name(stem)) if stem else "", extension.lower(), member
        except TarDamage as damage:
            rejects.append({"key": "", "reason": str(damage)})

    for key, group in itertools.groupby(named(), key=lambda item: item[0]):
        yield key, [(extension, member) for _, extension, member in group]


def _refuse_member(member: Member, place: PurePosixPath) -> str:
    if member.kind not in (b"0", b"\0", b"7", b"5"):
        return f"no plain file (type {member.kind.decode(errors='replace')})"
    if place.is_absolute() or ".." in place.parts:
        return "the name leaves its folder"
    return ""


def _refuse_members(members: Sequence[tuple[str, Member]]) -> str:
    extensions = [extension for extension, _ in members]
    videos = [extension for extension in extensions if extension.rpartition(".")[2] in ENCODINGS]
    if len(set(extensions)) < len(extensions):
        return "a member is there twice"
    return "" if len(videos) == 1 else f"{len(videos)} videos among {', '.join(extensions)[:MAX_LABEL]}"


def _describe(
    file: IO[bytes], key: str, members: Sequence[tuple[str, Member]], rejects: list[dict[str, str]]
) -> dict[str, Any]:
    """The line of one sample; unreadable metadata cost it its class, not its place."""
    label, class_id = "", -1
    metadata = {extension: member for extension, member in members if extension.rpartition(".")[2] in METADATA}
    try:
        label, class_id = class_of({extension: _read(file, member) for extension, member in metadata.items()})
    except (ValueError, RecursionError) as error:
        rejects.append({"key": key, "reason": f"unreadable metadata: {error}"[:MAX_LABEL]})
    (extension, video), *_ = [item for item in members if item[0].rpartition(".")[2] in ENCODINGS]
    place = {"offset": video.offset, "size": video.size, "encoding": ENCODINGS[extension.rpartition(".")[2]]}
    size = {"num_frames": 0, "fps": 0.0, "width": 0, "height": 0}
    return {"key": key, "label": label, "class_id": class_id, **size, **place}


def _read(file: IO[bytes], member: Member) -> bytes:
    if member.size > MAX_METADATA:
        raise ValueError(f"{member.size} bytes of metadata, expected at most {MAX_METADATA}")
    return os.pread(file.fileno(), member.size, member.offset)


def class_of(members: Mapping[str, bytes]) -> tuple[str, int]:
    """Label and class id by the metadata of a sample, by extension; "" and -1 where they tell none.

    Raises:
        ValueError: they are no text, or no JSON.
        RecursionError: they are nested too deeply.
    """
    for kind in METADATA:
        for extension, data in members.items():
            if extension.rpartition(".")[2] == kind:
                found = _class_in(kind, data.decode())
                if found != ("", -1):
                    return found
    return "", -1


def _class_in(kind: str, text: str) -> tuple[str, int]:
    if kind == "json":
        about = json.loads(text)
        about = about if isinstance(about, dict) else {}
        label, class_id = about.get("label"), about.get("class_id", -1)
        is_id = isinstance(class_id, int) and 0 <= class_id < MAX_CLASSES
        return (label[:MAX_LABEL] if isinstance(label, str) else ""), (class_id if is_id else -1)
    text = text.strip()
    if kind == "cls" and text.isdecimal() and int(text) < MAX_CLASSES:
        return text, int(text)
    return (text, -1) if 0 < len(text) <= MAX_LABEL else ("", -1)


def _classes(tars: Sequence[IndexedTar]) -> tuple[str, ...]:
    """Names by class id: as the tars number them, or in alphabetical order where they give names only."""
    found = {item for tar in tars for item in tar.labels.items()}
    numbered = {class_id: name for name, class_id in sorted(found) if class_id >= 0}
    if len(numbered) < len({name for name, class_id in found if class_id >= 0}):
        raise Refusal(f"{tars[0].path.parent}: one class id for several names; expected one name per id")
    if numbered:
        return tuple(numbered.get(number, str(number)) for number in range(max(numbered) + 1))
    return tuple(sorted({name for name, _ in found}))


def _find(source: str | Path) -> list[Path]:
    """The tars, sorted within a folder, in the order of a pattern."""
    path = Path(source)
    if path.is_dir():
        return sorted([*path.glob("*.tar"), *path.glob("*/*.tar")])
    ranges = re.findall(r"\{(\d+)\.\.(\d+)", str(source))
    if math.prod(abs(int(last) - int(first)) + 1 for first, last in ranges) > MAX_TARS:
        raise Refusal(f"shards={source}: more than {MAX_TARS} tars; expected fewer, larger ones")
    try:
        names = list(braceexpand(str(source)))
    except ValueError as error:
        raise Refusal(f"shards={source}: {error}; expected a pattern like train-{{000..099}}.tar") from error
    for name in names:
        if not Path(name).is_file():
            raise Refusal(
                f"shards={source}: no file {name}; expected a tar, a folder with tars or write_shards' output"
            )
    return [Path(name) for name in names]


def _index_folder(paths: Sequence[Path], cache: str | None) -> Path:
    """A folder of its own for each set of tars: beside them, or in the cache where that cannot be written."""
    digest = hashlib.sha256("\n".join(os.path.abspath(path) for path in paths).encode(errors="surrogateescape"))
    parent = Path(os.path.commonpath([os.path.abspath(path.parent) for path in paths]))
    beside = parent / "magvit_index"
    is_writable = os.access(beside if beside.exists() else parent, os.W_OK)
    folder = (beside if is_writable else cache_folder(cache) / "magvit_index") / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    """What earlier runs found, by path of the tar; a damaged note is made anew."""
    try:
        return dict(json.loads((folder / "tars.json").read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _open(path: Path, number: int, folder: Path, known: dict[str, dict[str, Any]]) -> IndexedTar:
    """A tar and its index, which is made where it is missing or older than the tar."""
    stat, index = path.stat(), folder / f"{number:06d}.json"
    state = {"num_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    facts = known.get(str(path), {})
    if not index.exists() or {key: facts.get(key) for key in state} != state:
        samples, rejects = index_tar(path)
        labels = {
            sample["label"]: sample["class_id"] for sample in samples if sample["label"] or sample["class_id"] >= 0
        }
        _write(index, {"count": len(samples), "samples": samples, "rejects": rejects})
        facts = {**state, "count": len(samples), "labels": labels, "num_rejects": len(rejects)}
        known[str(path)] = facts
    return IndexedTar(path=path, split=_split_of(path), index=index, **facts)


def _split_of(path: Path) -> str:
    words = {path.parent.name.lower(), *re.split(r"[^a-z]+", path.stem.lower())}
    return "test" if words & set(TEST_WORDS) else "train"


def _write(path: Path, content: Any) -> None:
    """Under a name of its own first: the ranks of a job may index the same tars at the same time."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        json.dump(content, file)
    os.replace(file.name, path)


def _tell(line: str) -> None:
    print(line.encode(errors="backslashreplace").decode(), file=sys.stderr)  # noqa: T201
