"""The members of a tar that write_shards wrote: plain files with plain names, each once."""

import tarfile
from collections.abc import Iterator
from typing import IO

from magvit_scale.tar_headers import Member, TarDamage, walk


class ShardFault(ValueError):
    """What is wrong with a shard, in one line."""


def read_members(file: IO[bytes]) -> Iterator[Member]:
    """Every member of a tar, in order.

    Raises:
        ShardFault: a damaged tar, or a member that is no plain file, whose name leaves the folder, or that comes
            twice.
    """
    seen: set[str] = set()
    try:
        for member in walk(file):
            _check_member(member)
            if member.name in seen:
                raise ShardFault(f"two members are named {member.name!r}")
            seen.add(member.name)
            yield member
    except TarDamage as damage:
        raise ShardFault(str(damage)) from damage


def _check_member(member: Member) -> None:
    if "/" in member.name or "\\" in member.name or member.name in ("", ".", ".."):
        raise ShardFault(f"member {member.name!r} leaves its folder, expected a plain file name")
    if member.kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        raise ShardFault(f"member {member.name!r} is a link to {member.target!r}, expected a plain file")
    if member.kind not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise ShardFault(f"member {member.name!r} is of type {member.kind!r}, expected a plain file")
