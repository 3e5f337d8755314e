"""This process among the others."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ranks:
    """Where a process stands."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes logs, pictures and exports."""
        return self.rank == 0
