"""One token shard as a tar of packed arrays, written and mapped. No torch.

    tokens-000000.tar              plain WebDataset (USTAR), one sample:
        tokens-000000.tokens.npy   uint16 '(n views canvases t h w)', canvas 0 is the clip itself (z)
        tokens-000000.labels.npy   int64 '(n)', -1 where the data have no classes
        tokens-000000.keys.json    n names

Packed, because a member per clip is 300 times slower to read than the memory that holds it; uncompressed, so that
the same file is streamed by WebDataset and mapped into memory here. The reader takes exactly what the writer writes
and nothing else, so a foreign or damaged file is told from its headers, without following any of its claims.
"""

import io
import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from magvit_scale.data.mapped_file import Bytes, map_file
from magvit_scale.files import npy_bytes, tar_written_aside

Tokens = NDArray[np.uint16]
Labels = NDArray[np.int64]

NUM_AXES = 6
MOST_BYTES_PER_KEY = 4096
_BLOCK = tarfile.BLOCKSIZE
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)\{'descr': '(?P<dtype>[^'\s]{1,16})', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9]+(, [0-9]+)*),?\), \} *\n",
    re.DOTALL,
)


class DamagedShard(ValueError):
    """A file is not the token shard that it should be."""


@dataclass(frozen=True)
class TokenTar:
    """An opened shard.

    Attributes:
        path: of the tar.
        tokens: uint16 '(n views canvases t h w)', mapped from the file.
        labels: int64 '(n)'.
    """

    path: Path
    tokens: Tokens
    labels: Labels

    def read_keys(self) -> list[str]:
        """The n names, read anew at each call.

        Raises:
            DamagedShard: they are no JSON list of n names.
        """
        with self.path.open("rb") as file:
            *_, member = _members(file, self.path)
            try:
                keys = json.loads(_read(file, member, MOST_BYTES_PER_KEY * (len(self.labels) + 1)))
            except (ValueError, RecursionError) as error:
                raise DamagedShard(f"{member.name}: {error}") from error
        if not isinstance(keys, list) or len(keys) != len(self.labels) or not all(isinstance(key, str) for key in keys):
            raise DamagedShard(f"{member.name}: expected a list of {len(self.labels)} names")
        return keys


def write_token_tar(path: Path, tokens: Tokens, labels: Labels, keys: Sequence[str]) -> None:
    """Writes a shard, byte-identical for equal arrays; aside first, then renamed.

    Args:
        path: the tar; its stem is the name of the sample in it.
        tokens: uint16 '(n views canvases t h w)'.
        labels: integers '(n)'.
        keys: n names.

    Raises:
        ValueError: shapes or type do not fit.
    """
    if tokens.ndim != NUM_AXES or tokens.dtype != np.uint16 or not len(tokens) == len(labels) == len(keys):
        raise ValueError(
            f"tokens {tokens.dtype} {tokens.shape}, labels {labels.shape}, {len(keys)} keys: expected uint16 of "
            f"{NUM_AXES} axes, and as many labels and keys as clips"
        )
    contents = (npy_bytes(tokens), npy_bytes(labels.astype(np.int64)), json.dumps(list(keys)).encode())
    with tar_written_aside(path) as add:
        for name, content in zip(_member_names(path.stem), contents, strict=True):
            add(name, content)


def open_token_tar(path: Path, clip_shape: Sequence[int]) -> TokenTar:
    """Maps a shard.

    Args:
        path: the tar.
        clip_shape: (views, canvases, t, h, w).

    Raises:
        DamagedShard: not a shard, or one of another shape.
        OSError: the file cannot be read or mapped.
    """
    with path.open("rb") as file:
        members = _members(file, path)
        found = _npy_shape(file, members[0], "<u2")
        if found[1:] != tuple(clip_shape):
            raise DamagedShard(f"{members[0].name}: shape {found}, expected (clips, {str(tuple(clip_shape))[1:]}")
        if _npy_shape(file, members[1], "<i8") != found[:1]:
            raise DamagedShard(f"{members[1].name}: expected {found[0]} labels")
        data = _read(file, members[1], members[1].size)
        memory = map_file(file)
    labels = np.frombuffer(data[len(data) - 8 * found[0] :], "<i8")
    return TokenTar(path, _tokens(memory, members[0], found), labels)


def _member_names(stem: str) -> tuple[str, str, str]:
    return f"{stem}.tokens.npy", f"{stem}.labels.npy", f"{stem}.keys.json"


def _members(file: IO[bytes], path: Path) -> list[tarfile.TarInfo]:
    """The headers of exactly the members that a shard has, in their order.

    Header by header and not with `tarfile.open`, which believes every size and name that it reads.
    """
    num_bytes, members = file.seek(0, io.SEEK_END), []
    position = 0
    for name in _member_names(path.stem):
        file.seek(position)
        try:
            member = tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise DamagedShard(f"no {name}: {error}") from error
        if member.name != name or member.type != tarfile.REGTYPE:
            raise DamagedShard(f"member {member.name!r} of type {member.type!r}, expected the file {name}")
        member.offset_data = position + _BLOCK
        position = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
        if not 0 <= member.size <= num_bytes - member.offset_data:
            raise DamagedShard(f"{name}: {member.size} bytes in a file of {num_bytes}")
        members.append(member)
    # Two empty blocks, then filled up to a record.
    end = -(-(position + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    file.seek(position)
    if num_bytes != end or any(file.read(end - position)):
        raise DamagedShard(f"{num_bytes} bytes, expected the end at {end} and nothing after {members[-1].name}")
    return members


def _npy_shape(file: IO[bytes], member: tarfile.TarInfo, dtype: str) -> tuple[int, ...]:
    """What the header of a .npy member says, where it agrees with the member's size.

    Read by pattern and not by numpy, which evaluates a header and unpickles what it says are objects.
    """
    file.seek(member.offset_data)
    header = _NPY_HEADER.match(file.read(min(member.size, 1024)))  # an honest one has 128 bytes
    if header is None or header.end() != 10 + int.from_bytes(header["length"], "little"):
        raise DamagedShard(f"{member.name}: no .npy header of a plain array")
    shape = tuple(int(side) for side in header["shape"].split(b","))
    found, num_bytes = header["dtype"].decode("ascii", "replace"), header.end() + int(dtype[-1]) * _product(shape)
    if found != dtype or num_bytes != member.size:
        raise DamagedShard(f"{member.name}: {found} {shape} in {member.size} bytes, expected {dtype} in {num_bytes}")
    return shape


def _product(shape: Sequence[int]) -> int:
    """In whole numbers, which do not overflow as numpy's would on an absurd shape."""
    product = 1
    for side in shape:
        product *= side
    return product


def _read(file: IO[bytes], member: tarfile.TarInfo, most: int) -> bytes:
    if member.size > most:
        raise DamagedShard(f"{member.name}: {member.size} bytes, expected at most {most}")
    file.seek(member.offset_data)
    return file.read(member.size)


def _tokens(memory: Bytes, member: tarfile.TarInfo, shape: tuple[int, ...]) -> Tokens:
    """The last bytes of the member, after the .npy header."""
    end = member.offset_data + member.size
    return memory[end - 2 * _product(shape) : end].view("<u2").reshape(shape)
