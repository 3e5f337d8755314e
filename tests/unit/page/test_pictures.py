"""Moving pictures: lossless, looping, with a still beside each; and how many."""

import base64
import io
import re

import numpy as np
from PIL import Image

from magvit_scale.page.pictures import animated_webp, enlargement, latent_grid, moving_picture, strips
from tests.toy_record import clips


def test_moving_pictures_loop_without_loss() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 8, 6, 3), np.uint8)
    with Image.open(io.BytesIO(animated_webp(frames, 8))) as movie:
        assert (movie.size, movie.n_frames, movie.info["loop"]) == ((6, 8), 5, 0)
        assert np.array_equal(np.asarray(movie.convert("RGB")), frames[0])


def test_a_moving_picture_has_its_middle_frame_beside_it() -> None:
    clip = clips(1, frames=5)[0]
    found = re.findall(r'<img class="(\w+)" alt="a &lt;b&gt;"[^>]* src="data:image/webp;base64,([^"]*)">',
                       moving_picture(clip, 8, "a <b>", 128))  # fmt: skip
    pictures = {kind: Image.open(io.BytesIO(base64.b64decode(data))) for kind, data in found}
    assert {kind: getattr(picture, "n_frames", 1) for kind, picture in pictures.items()} == {"moving": 5, "still": 1}
    assert np.array_equal(np.asarray(pictures["still"].convert("RGB")), clip[2])


def test_samples_are_left_out_to_keep_the_page_small() -> None:
    panels, names = [("real", clips(6))], [f"class {index}" for index in range(6)]
    assert strips(panels, names, 8, max_bytes=10**6).count("<figure") == 6
    assert "<summary>2 more</summary>" in strips(panels, names, 8, max_bytes=10**6)
    assert strips(panels, names, 8, max_bytes=0).count("<figure") == 2


def test_latent_grid_draws_one_frame_each_and_joins_runs() -> None:
    fixed = np.zeros((2, 2, 4), bool)
    fixed[0, 1, 1:3] = True
    fixed[1, 0, [0, 3]] = True
    assert re.findall(r' d="([^"]*)"', latent_grid(fixed)) == ["M1 1h2v1h-2z", "M0 0h1v1h-1zM3 0h1v1h-1z"]


def test_clips_are_enlarged_by_whole_factors() -> None:
    assert [enlargement(size) for size in (8, 32, 48, 64, 128, 256)] == [16, 4, 3, 2, 1, 1]
