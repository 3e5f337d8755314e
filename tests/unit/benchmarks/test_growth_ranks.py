"""Collectives are seen where PyTorch dispatches them, with the bytes of their whole tensors."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from benchmarks.growth_ranks import CollectiveMeter
from magvit_scale.training import distributed


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    distributed.start()
    yield
    distributed.stop()


def test_bytes_and_calls_of_each_collective() -> None:
    with CollectiveMeter() as meter:
        dist.all_reduce(torch.zeros(10))
        dist.all_reduce(torch.zeros(5, dtype=torch.float64))
        dist.all_gather_into_tensor(torch.empty(3), torch.zeros(3))
        dist.all_gather([torch.empty(7)], torch.zeros(7))
        dist.reduce_scatter_tensor(torch.empty(6), torch.zeros(6))
        dist.barrier()
    assert meter.num_bytes == {"all_reduce": 40 + 40, "all_gather": 12 + 28, "reduce_scatter": 24}
    assert meter.calls == {"all_reduce": 2, "all_gather": 2, "reduce_scatter": 1}


def test_nothing_is_counted_outside() -> None:
    with CollectiveMeter() as meter:
        pass
    dist.all_reduce(torch.zeros(10))
    assert not meter.calls
