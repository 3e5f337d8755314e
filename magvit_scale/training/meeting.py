"""Where ranks find each other before they are a process group: a small store at MASTER_ADDR and MASTER_PORT.

A process group waits for all or fails without a name; here who does not come is known, and nobody waits for ever.
"""

import os
import socket
import time
from collections.abc import Collection
from datetime import timedelta

import torch.distributed as dist

from magvit_scale.config import Refusal

POLL_INTERVAL_S = 0.05
CONNECT_TIMEOUT_S = 5.0


class Meeting:
    """The ranks that have come. Every rank must make one; rank 0 is the host, and is to leave last.

    Attributes:
        store: for a process group of the ranks that met.

    Args:
        rank: of this process.
        world_size: number of ranks; one alone needs no address.
        patience_s: how long a rank waits for another's word.

    Raises:
        Refusal: rank 0 cannot be reached or, on rank 0, its port is taken.
    """

    def __init__(self, rank: int, world_size: int, patience_s: float) -> None:
        self.rank, self.world_size, self.patience_s = rank, world_size, patience_s
        self.store = dist.PrefixStore("meeting", dist.HashStore() if world_size == 1 else self._connect())

    @property
    def is_host(self) -> bool:
        """True on rank 0, which hears all others."""
        return self.rank == 0

    def tell(self, key: str, text: str) -> str:
        """Every rank must call: the text that rank 0 passes.

        Args:
            key: of the store, another for each call.
            text: of rank 0; the others' is not looked at.

        Raises:
            Refusal: rank 0 does not say it within twice the patience, since it may itself be waiting for others.
        """
        if self.is_host:
            self._set(key, text)
        elif self._missing_of([key], 2 * self.patience_s):
            raise Refusal(f"rank 0 has said nothing for {2 * self.patience_s:g} s; read its log")
        return self.store.get(key).decode()

    def gather(self, key: str, text: str, among: Collection[int]) -> dict[int, str]:
        """Every rank must call: on rank 0 the texts by rank of those that pass one in time; the others go on at once,
        with an empty dictionary.

        Args:
            key: of the store, another for each call.
            text: of this rank.
            among: whom rank 0 waits for.

        Raises:
            Refusal: rank 0 is gone.
        """
        self._set(_key(key, self.rank), text)
        if not self.is_host:
            return {}
        missing = self._missing_of([_key(key, rank) for rank in among], self.patience_s)
        present = [rank for rank in among if _key(key, rank) not in missing]
        return {rank: self.store.get(_key(key, rank)).decode() for rank in present}

    def _missing_of(self, keys: Collection[str], patience_s: float) -> set[str]:
        """Asks again and again instead of waiting in the store, which would print its C++ stack."""
        missing, deadline = set(keys), time.monotonic() + patience_s
        try:
            while missing := {key for key in missing if not self.store.check([key])}:
                if time.monotonic() > deadline:
                    break
                time.sleep(POLL_INTERVAL_S)
        except dist.DistError as error:
            raise Refusal(GONE) from error
        return missing

    def _set(self, key: str, text: str) -> None:
        try:
            self.store.set(key, text)
        except dist.DistError as error:
            raise Refusal(GONE) from error

    def _connect(self) -> dist.TCPStore:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # torchrun's own store is there already.
        is_host = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        timeout = timedelta(seconds=2 * self.patience_s)
        try:
            if not is_host:
                _wait_for_port(address, port, self.patience_s)
            return dist.TCPStore(address, port, is_master=is_host, wait_for_workers=False, timeout=timeout)
        except (OSError, dist.DistError) as error:
            reason = str(error).splitlines()[0]
            if is_host:
                raise Refusal(f"cannot listen at MASTER_PORT={port}: {reason}; take another port") from error
            raise Refusal(
                f"cannot reach rank 0 at {address}:{port} within {self.patience_s:g} s: {reason}; see whether it runs, "
                "and whether this node may connect to that port"
            ) from error


GONE = "rank 0 has ended; read its log"


def _key(key: str, rank: int) -> str:
    return f"{key} of rank {rank}"


def _wait_for_port(address: str, port: int, patience_s: float) -> None:
    """Waits until somebody listens there; raises the last OSError where nobody does."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            socket.create_connection((address, port), timeout=CONNECT_TIMEOUT_S).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_INTERVAL_S)
