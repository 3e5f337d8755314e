"""Image files as videos of one frame: probed, cut square, stored as JPEG. What the 2D VQGAN trains on."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from magvit_scale.video import Frames, VideoError, VideoInfo

IMAGE_EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP")
JPEG_QUALITY = 95


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file, in any case."""
    return path.suffix.lower() in IMAGE_EXTENSIONS


def probe_image(path: Path) -> VideoInfo:
    """Decodes a whole image, because headers lie, and describes it as one frame at 1 fps.

    Raises:
        VideoError: it does not decode.
    """
    with _upright(path) as image:
        return VideoInfo(width=image.width, height=image.height, fps=1.0, num_frames=1, duration_s=1.0)


def decode_image(path: Path, *, size_px: int, keep_aspect: bool = False) -> Frames:
    """Decodes an image, turned as its EXIF data says: short side resized to `size_px`, the long side cropped at both
    ends or, with `keep_aspect`, kept to the next even number.

    Returns:
        uint8 '1 h w 3', RGB.

    Raises:
        VideoError: it does not decode.
    """
    with _upright(path) as image:
        long = 2 * round(max(image.size) * size_px / min(image.size) / 2) if keep_aspect else size_px
        sides = (size_px, max(size_px, long))
        size = sides if image.width < image.height else sides[::-1]
        resized = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.BICUBIC)
    return np.asarray(resized)[None]


def encode_jpeg(frames: Frames) -> bytes:
    """One frame, uint8 '1 h w 3', as JPEG of quality 95 without chroma subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(frames[0]).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


@contextmanager
def _upright(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield ImageOps.exif_transpose(image)
    # Pillow tells damage in all of these; SyntaxError is its word for a broken PNG.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(f"unreadable image: {error}") from error
