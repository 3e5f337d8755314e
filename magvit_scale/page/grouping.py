"""What may stand beside each other, and why the rest stands apart."""

from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class Group(NamedTuple, Generic[Item]):
    """Items that are alike, by name."""

    members: dict[str, Item]
    reasons: list[str]
    """Why they are not in each of the groups before."""


def grouped(items: Mapping[str, Item], difference: Callable[[Item, Item], str]) -> list[Group[Item]]:
    """Every item in the first group to all of whose members it is alike.

    Args:
        items: by name; their order is kept.
        difference: why two are not alike; empty where they are.
    """
    groups: list[Group[Item]] = []
    for name, item in items.items():
        reasons: list[str] = []
        for group in groups:
            reason = next(filter(None, (difference(member, item) for member in group.members.values())), "")
            if not reason:
                group.members[name] = item
                break
            reasons.append(reason)
        else:
            groups.append(Group({name: item}, reasons))
    return groups
