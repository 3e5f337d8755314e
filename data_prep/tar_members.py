"""The members of a tar that write_shards wrote, read header by header; nothing is extracted and no size is believed."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_BLOCK = tarfile.BLOCKSIZE


class ShardFault(ValueError):
    """What is wrong with a shard, in one line."""


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Attributes:
        name: plain file name.
        offset: first byte of its data.
        size: bytes of its data.
    """

    name: str
    offset: int
    size: int


def read_members(file: IO[bytes], num_bytes: int) -> Iterator[Member]:
    """Every member of a tar of `num_bytes` bytes, in order.

    Raises:
        ShardFault: truncated, a damaged header, a member that is no plain file, whose name leaves the folder, that
            comes twice, or that claims more bytes than there are.
    """
    position, seen = 0, set()
    while (member := _read_member(file, position, num_bytes)) is not None:
        if member.name in seen:
            raise ShardFault(f"two members are named {member.name!r}")
        seen.add(member.name)
        yield member
        position = member.offset + -(-member.size // _BLOCK) * _BLOCK


def _read_member(file: IO[bytes], position: int, num_bytes: int) -> Member | None:
    file.seek(position)
    header = file.read(_BLOCK)
    if len(header) < _BLOCK:
        raise ShardFault(f"truncated: the tar ends at byte {num_bytes} without its end mark")
    if not any(header):
        return None
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise ShardFault(f"damaged header at byte {position}: {error}") from error
    _check_member(info, num_bytes - position - _BLOCK)
    return Member(info.name, position + _BLOCK, info.size)


def _check_member(info: tarfile.TarInfo, bytes_left: int) -> None:
    if "/" in info.name or "\\" in info.name or info.name in ("", ".", ".."):
        raise ShardFault(f"member {info.name!r} leaves its folder, expected a plain file name")
    if info.issym() or info.islnk():
        raise ShardFault(f"member {info.name!r} is a link to {info.linkname!r}, expected a plain file")
    if not info.isreg():
        raise ShardFault(f"member {info.name!r} is of type {info.type!r}, expected a plain file")
    if not 0 <= info.size <= bytes_left:
        raise ShardFault(f"member {info.name!r} claims {info.size} bytes where {bytes_left} are left")
