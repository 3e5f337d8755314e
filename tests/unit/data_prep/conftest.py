"""Small videos for the tests of this folder."""

from pathlib import Path

import pytest

from data_prep import moving_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight classes of three videos: 20 frames of 32 px."""
    folder = tmp_path_factory.mktemp("shapes")
    moving_shapes.main([f"output={folder}", "videos_per_class=3", "num_frames=20", "size_px=32"])
    return folder
