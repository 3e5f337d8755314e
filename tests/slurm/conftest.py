"""One cluster for all tests of this folder, put in order after each."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import packages
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
