import hashlib
from pathlib import Path

import numpy as np
import pytest

from data_prep.moving_shapes import CLASSES, main, render
from magvit_scale.config import MovingShapesConfig, Refusal
from magvit_scale.video import probe

CONFIG = MovingShapesConfig(output="unused")


@pytest.mark.parametrize("name", CLASSES)
def test_something_moves_between_any_two_frames(name: str) -> None:
    video = render(CONFIG, name, 5)
    assert (video.shape, video.dtype) == ((64, 64, 64, 3), np.uint8)
    # 0.4 % of all pixels moving by half the range; a still pair has 0.
    assert np.abs(np.diff(video.astype(int), axis=0)).mean((1, 2, 3)).min() > 0.5
    assert np.array_equal(video, render(CONFIG, name, 5))
    assert not np.array_equal(video, render(CONFIG, name, 6))


def test_classes_and_seeds_differ() -> None:
    assert len(CLASSES) == 8
    first = render(CONFIG, "bounce", 0)
    assert not np.array_equal(first, render(MovingShapesConfig(output="unused", seed=1), "bounce", 0))


def test_writes_class_folders_and_keeps_what_exists(tmp_path: Path) -> None:
    arguments = [f"output={tmp_path}", "videos_per_class=1", "num_frames=8", "size_px=16"]
    main(arguments)
    files = sorted(tmp_path.glob("*/*.mp4"))
    assert [str(path.relative_to(tmp_path)) for path in files] == [
        f"{name}/{name}_0000.mp4" for name in sorted(CLASSES)
    ]
    assert probe(files[0]).num_frames == 8
    before = {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest()) for path in files}
    files[3].unlink()
    main(arguments)
    for path in files:
        assert hashlib.sha256(path.read_bytes()).digest() == before[path][1]
        assert (path.stat().st_mtime_ns == before[path][0]) == (path != files[3])


def test_other_settings_in_one_folder_are_refused(tmp_path: Path) -> None:
    main([f"output={tmp_path}", "videos_per_class=1", "num_frames=8", "size_px=16"])
    with pytest.raises(Refusal, match="give another output"):
        main([f"output={tmp_path}", "videos_per_class=1", "num_frames=8", "size_px=32"])
    with pytest.raises(Refusal, match="size_px=15"):
        main([f"output={tmp_path}", "size_px=15"])
