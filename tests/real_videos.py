"""The real videos of MAGVIT_TEST_VIDEOS."""

import os
from pathlib import Path

import pytest

VIDEOS = Path(os.environ.get("MAGVIT_TEST_VIDEOS", "unset"))
needs_videos = pytest.mark.skipif("MAGVIT_TEST_VIDEOS" not in os.environ, reason="MAGVIT_TEST_VIDEOS is not set")
