"""Pictures for TensorBoard, pixel by pixel."""

import io

import numpy as np
import pytest
from PIL import Image
from tensorboard.util.tensor_util import make_ndarray

from magvit_scale.training.pictures import gif, image_summary, stack_rows


def test_rows_stand_below_each_other_and_clips_side_by_side() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)  # row, clip, frame
    rows = [np.broadcast_to(row[:, :, None, None, None], (2, 3, 4, 6, 3)) for row in values]
    found = stack_rows(rows)
    assert found.shape == (3, 8, 12, 3)
    for (row, clip, frame), value in np.ndenumerate(values):
        assert (found[frame, 4 * row : 4 * row + 4, 6 * clip : 6 * clip + 6] == value).all()


def test_a_gif_moves_without_end_at_its_rate() -> None:
    frames = np.zeros((3, 4, 6, 3), np.uint8)
    frames[..., 0] = np.array([0, 100, 200])[:, None, None]
    picture = Image.open(io.BytesIO(gif(frames, fps=5)))
    assert (picture.format, picture.size, picture.info["duration"], picture.info["loop"]) == ("GIF", (6, 4), 200, 0)
    reds = []
    for frame in range(getattr(picture, "n_frames", 1)):
        picture.seek(frame)
        reds.append(int(np.array(picture.convert("RGB"))[2, 3, 0]))
    assert reds == pytest.approx([0, 100, 200], abs=2)


def test_a_summary_is_what_the_images_plugin_reads() -> None:
    (value,) = image_summary("reconstructions/still", b"encoded", (5, 7), "said").value
    assert (value.tag, value.metadata.plugin_data.plugin_name) == ("reconstructions/still", "images")
    assert value.metadata.summary_description == "said"
    assert make_ndarray(value.tensor).tolist() == [b"7", b"5", b"encoded"]
