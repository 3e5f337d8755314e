"""Still pictures, pixel by pixel."""

import io

import numpy as np
from PIL import Image

from magvit_scale.pictures import (
    GAP_PX,
    KEPT,
    NEWLY_KEPT,
    UNKNOWN,
    WHITE,
    decoding_steps,
    enlarged,
    png_bytes,
    time_grid,
)


def plain(level: int, num_frames: int, side: int) -> np.ndarray:
    """Frame i has the level + i everywhere."""
    levels = np.arange(level, level + num_frames, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, side, side, 3)).copy()


def test_small_frames_grow_by_a_whole_factor_and_large_ones_stay() -> None:
    small = np.arange(2 * 48 * 48 * 3).astype(np.uint8).reshape(2, 48, 48, 3)
    large = enlarged(small)
    assert large.shape == (2, 96, 96, 3)
    assert (large[:, ::2, ::2] == small).all()
    assert (large[:, 1::2, 1::2] == small).all()
    assert enlarged(plain(0, 1, 256)).shape == (1, 256, 256, 3)


def test_a_grid_has_clips_below_and_frames_beside_each_other() -> None:
    grid = time_grid([plain(10, 3, 8), plain(100, 3, 8)])
    pitch = 8 + GAP_PX
    assert grid.shape == (2 * 8 + GAP_PX, 3 * 8 + 2 * GAP_PX, 3)
    for row, level in enumerate((10, 100)):
        for column in range(3):
            cell = grid[row * pitch : row * pitch + 8, column * pitch : column * pitch + 8]
            assert (cell == level + column).all()
    assert (grid[8:pitch] == 255).all()
    assert (grid[:, 8:pitch] == 255).all()


def test_steps_show_the_middle_frame_over_its_kept_tokens() -> None:
    # Three steps of a clip of 8 frames, 4 latent frames of 2 x 2: the middle frame, 4, lies in latent frame 2.
    clips = np.stack([plain(50 * step, 8, 128) for step in range(3)])
    fixed = np.zeros((3, 4, 2, 2), bool)
    fixed[1:, 2, 0, 1] = True
    fixed[2, 2] = True
    fixed[:, 0] = True  # another latent frame
    picture = decoding_steps(clips, fixed)
    pitch = 128 + GAP_PX
    assert picture.shape == (2 * 128 + GAP_PX, 3 * 128 + 2 * GAP_PX, 3)
    assert [int(picture[0, step * pitch, 0]) for step in range(3)] == [4, 54, 104]

    def token(step: int, row: int, column: int) -> tuple[int, ...]:
        return tuple(map(int, picture[pitch + row * 64 + 20, step * pitch + column * 64 + 20]))

    cells = [[token(step, row, column) for row in (0, 1) for column in (0, 1)] for step in range(3)]
    assert cells[0] == [UNKNOWN] * 4
    assert cells[1] == [UNKNOWN, NEWLY_KEPT, UNKNOWN, UNKNOWN]
    assert cells[2] == [NEWLY_KEPT, KEPT, NEWLY_KEPT, NEWLY_KEPT]
    assert tuple(picture[pitch + 63, 10]) == WHITE  # a line between two tokens


def test_a_png_holds_the_pixels() -> None:
    picture = np.arange(4 * 5 * 3).astype(np.uint8).reshape(4, 5, 3)
    assert (np.asarray(Image.open(io.BytesIO(png_bytes(picture)))) == picture).all()
