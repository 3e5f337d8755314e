"""The members of a tar, header by header: nothing is extracted, and no size is believed that the file does not hold.

`tarfile.open` believes every size and name that it reads, and goes through a whole tar to tell its members.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENDED = 1 << 16
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)


class TarDamage(ValueError):
    """What is wrong with a tar, in one line."""


@dataclass(frozen=True)
class Member:
    """An entry of a tar.

    Attributes:
        name: as it stands there; it may be anything.
        kind: the type flag, for instance `tarfile.REGTYPE`.
        offset: first byte of the content.
        size: bytes of the content.
        target: of a link.
    """

    name: str
    kind: bytes
    offset: int
    size: int
    target: str = ""


def walk(file: IO[bytes], *, needs_end_mark: bool = True) -> Iterator[Member]:
    """The members of a tar in order; long names of GNU and pax are understood.

    Args:
        file: the tar.
        needs_end_mark: whether a tar that just ends after a member is damage, too.

    Raises:
        TarDamage: truncated, a damaged header, or a member that claims more bytes than there are; what came before
            has been yielded.
    """
    end, position, long_name = os.fstat(file.fileno()).st_size, 0, ""
    while needs_end_mark or position != end:
        info = _header_at(file, position, end)
        if info is None:
            return
        offset = position + BLOCK
        size = info.size if info.isreg() or info.type in _EXTENDED else 0
        if not 0 <= size <= end - offset:
            raise TarDamage(
                f"member {info.name[:100]!r} claims {size} bytes where {end - offset} are left: beyond the end at {end}"
            )
        position = offset + -(-size // BLOCK) * BLOCK
        if info.type in _EXTENDED:
            long_name = _long_name(file, info, offset) or long_name
            continue
        yield Member(long_name or info.name, info.type, offset, size, info.linkname)
        long_name = ""


def _header_at(file: IO[bytes], position: int, end: int) -> tarfile.TarInfo | None:
    file.seek(position)
    header = file.read(BLOCK)
    if len(header) < BLOCK:
        raise TarDamage(f"truncated: the tar ends at byte {end} without its end mark")
    if not any(header):
        return None
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise TarDamage(f"damaged header at byte {position}: {error}") from error


def _long_name(file: IO[bytes], info: tarfile.TarInfo, offset: int) -> str:
    """The name in an extended header; pax records are `LENGTH path=NAME`."""
    if info.size > MAX_EXTENDED:
        raise TarDamage(f"extended header of {info.size} bytes at {offset}")
    file.seek(offset)
    data = file.read(info.size)
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return data.split(b"\0")[0].decode(errors="surrogateescape")
    for record in data.split(b"\n") if info.type == tarfile.XHDTYPE else []:
        _, _, field = record.partition(b" ")
        if field.startswith(b"path="):
            return field[5:].decode(errors="surrogateescape")
    return ""
