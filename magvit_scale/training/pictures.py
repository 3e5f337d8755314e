"""Frames as pictures that a browser shows, uint8 RGB: rows of clips, moving as GIF, and what TensorBoard wants."""

import io
from collections.abc import Sequence

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.image.metadata import create_summary_metadata
from tensorboard.util.tensor_util import make_tensor_proto

Pixels = NDArray[np.uint8]


def stack_rows(rows: Sequence[Pixels]) -> Pixels:
    """Clips 'n t h w 3' of each row side by side, the rows below each other: 't (rows h) (n w) 3'."""
    return np.concatenate([rearrange(row, "n t h w c -> t h (n w) c") for row in rows], axis=1)


def gif(frames: Pixels, fps: int) -> bytes:
    """Frames 't h w 3' as a moving picture without end."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=1000 // fps, loop=0)
    return buffer.getvalue()


def image_summary(name: str, encoded: bytes, size: tuple[int, int], words: str) -> Summary:
    """A picture of `size` (height, width) for TensorBoard, with `words` beside it.

    TensorBoard passes it to the browser as it is, so a GIF moves; add_video of SummaryWriter needs moviepy, and
    add_image has no words.
    """
    height, width = size
    tensor = make_tensor_proto([str(width).encode(), str(height).encode(), encoded])
    metadata = create_summary_metadata(display_name="", description=words)
    return Summary(value=[Summary.Value(tag=name, tensor=tensor, metadata=metadata)])
