"""One cluster for all tests of this folder, put in order after each."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.integration.nursery import Nursery
from tests.integration.tiny_runs import TinyRuns, write_data
from tests.slurm import packages
from tests.slurm.chains import STANDARD, TRAINS, Chain
from tests.slurm.cluster import Cluster


def pytest_runtest_setup() -> None:
    # Not in the fixture: there pytest would write the line once per test.
    if os.environ.get("MAGVIT_SLURM_TESTS") != "1":
        pytest.skip("`make test-slurm` runs these on a SLURM cluster of its own; it needs root on Debian")


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three nodes; SLURM's commands find them. The folder with the logs is kept if a test has failed."""
    packages.install()
    folder = Path(tempfile.mkdtemp(prefix="magvit-slurm-", dir="/tmp"))
    cluster = Cluster(folder, num_nodes=3)
    cluster.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in cluster.environment.items():
                patch.setenv(name, value)
            yield cluster
    finally:
        cluster.stop()
        if not request.session.testsfailed:
            shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _clean_cluster(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.reset()


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    """Data of both training stages, on what the nodes share."""
    folder = tmp_path_factory.mktemp("tiny")
    with Nursery(folder) as nursery:
        return write_data(folder, nursery)


@pytest.fixture(scope="session")
def trains_in(cluster: Cluster, tiny_runs: TinyRuns) -> Callable[[Path], Callable[..., Chain]]:
    """Makes chains of one training stage in a folder: two nodes with one rank each where nothing else is said."""

    def in_folder(folder: Path) -> Callable[..., Chain]:
        def make(steps: int = 250, resources: Mapping[str, Any] | None = None, **settings: Any) -> Chain:
            arguments = tiny_runs.commit(folder / "run/train", stage=2, steps=steps)[1:]
            overrides = [*arguments, "run.checkpoint_every=10", "run.keep_checkpoints=2", "run.dead_after_s=60"]
            stage = {"program": TRAINS, "overrides": overrides, "nodes": 2, "cpus_per_task": 1, **settings}
            return Chain(cluster, folder, {"train": stage}, STANDARD | dict(resources or {}))

        return make

    return in_folder


@pytest.fixture
def trains(trains_in: Callable[[Path], Callable[..., Chain]], tmp_path: Path) -> Callable[..., Chain]:
    """Makes a chain of one training stage in the test's own folder."""
    return trains_in(tmp_path)


@pytest.fixture
def chain_of(cluster: Cluster, tmp_path: Path) -> Callable[..., Chain]:
    """Makes a chain of the stages that are given, each with `output={root}/NAME`."""

    def make(resources: Mapping[str, Any] | None = None, **stages: dict[str, Any]) -> Chain:
        for name, stage in stages.items():
            stage["overrides"] = [f"output={{root}}/{name}", *stage.get("overrides", [])]
        return Chain(cluster, tmp_path, stages, STANDARD | dict(resources or {}))

    return make
