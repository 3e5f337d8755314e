"""The embedded data set: short videos of one moving shape, whose class is the kind of motion.

    python -m data_prep.moving_shapes output=shapes

A video is a function of (seed, class, number). Colours, shapes and backgrounds are drawn alike in every class, so
motion tells the classes apart; two carry a mark besides, the bar of `pass_behind` and the two tones of `rotate`.
Turning points fall on whole frames, so that no two neighbouring frames are equal; a mirrored video stays in its
class.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from magvit_scale.config import MovingShapesConfig, Refusal, parse, refusals_end_the_program
from magvit_scale.files import write_json
from magvit_scale.progress import progress
from magvit_scale.video import encode_mp4

Array = NDArray[np.floating]

# x264's quality: fine enough that what a tokenizer loses is its own loss, not the codec's.
CRF = 12
# Two: a video is half numpy here, half an ffmpeg process.
NUM_THREADS = 2
REFERENCE_FPS = 8
"""Speeds below are per frame at this rate."""
HUES = np.array([(230, 40, 40), (240, 200, 30), (50, 200, 60), (40, 200, 220), (60, 80, 235), (220, 60, 210)]) / 255
MUTED = np.array([(96, 100, 110), (120, 110, 96), (92, 112, 100), (110, 96, 112), (130, 128, 122), (78, 84, 98)]) / 255
SHAPES = ("disc", "square", "triangle")
LOW, HIGH = 0.18, 0.82
"""Range of a centre that keeps the shape inside the frame, in frame widths."""


@dataclass
class Motion:
    """One video's trajectory; all arrays are 't', lengths in frame widths, y downwards.

    Attributes:
        x: centre.
        y: centre.
        radius: of the disc; of the circle around square and triangle.
        angle: radians.
        has_bar: a textured bar stands in front of the shape.
        is_two_toned: one half of the shape is lighter, so that turning shows on a disc.
    """

    x: Array
    y: Array
    radius: Array
    angle: Array
    has_bar: bool = False
    is_two_toned: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Writes `<output>/<class>/<class>_NNNN.mp4`; files that exist are kept.

    Raises:
        Refusal: impossible sizes, or the folder holds videos of other settings.
    """
    config = parse(MovingShapesConfig, argv)
    _check(config)
    _claim(config)
    paths = [(name, index) for name in CLASSES for index in range(config.videos_per_class)]
    missing = [(name, index) for name, index in paths if not _path(config, name, index).exists()]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        written = pool.map(lambda item: _write(config, *item), missing)
        for _ in progress(written, "moving_shapes", len(missing), unit="video"):
            pass


def render(config: MovingShapesConfig, name: str, index: int) -> NDArray[np.uint8]:
    """Draws one video: uint8 't h w 3', a function of (config.seed, name, index).

    Args:
        config: sizes, rate and seed.
        name: one of CLASSES.
        index: number of the video within its class.
    """
    digest = hashlib.blake2b(f"{config.seed}/{name}/{index}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    # Time in frames at the reference rate: another fps samples the same motion more or less densely.
    ticks = np.arange(config.num_frames) * (REFERENCE_FPS / config.fps)
    radius = rng.uniform(0.145, 0.17)
    motion = CLASSES[name](rng, ticks, radius)
    canvas = np.broadcast_to(_background(rng, config.size_px), (config.num_frames, config.size_px, config.size_px, 3))
    canvas = _paint(canvas, rng, motion)
    if motion.has_bar:
        canvas = _paint_bar(canvas, rng)
    return np.asarray(np.round(canvas * 255), np.uint8)


# ----------------------------------------------------------------------------------------------------------------------
# The classes: each draws its parameters and returns a trajectory


def _bounce(rng: np.random.Generator, ticks: Array, radius: float) -> Motion:
    """Straight lines through the whole frame, reflected by its borders."""
    periods = rng.permutation([rng.integers(18, 24), rng.integers(12, 16)])
    x, y = (LOW + (HIGH - LOW) * _triangle(ticks + rng.integers(period), period) for period in periods)
    return _still(ticks, radius, rng, x=x, y=y)


def _orbit(rng: np.random.Generator, ticks: Array, radius: float) -> Motion:
    """A circle around the middle of the frame, either way round."""
    phase = rng.uniform(0, 2 * np.pi) + rng.choice([-1, 1]) * 2 * np.pi * ticks / rng.integers(16, 22)
    distance = rng.uniform(0.27, 0.32)
    return _still(ticks, radius, rng, x=0.5 + distance * np.cos(phase), y=0.5 + distance * np.sin(phase))


def _fall(rng: np.random.Generator, ticks: Array, radius: float) -> Motion:
    """Parabolic hops on the floor with a slow drift."""
    period, drift = rng.integers(10, 14), rng.integers(36, 48)
    hop = 2 * (((ticks + rng.integers(period)) % period) / period) - 1
    x = LOW + (HIGH - LOW) * _triangle(ticks + rng.integers(drift), drift)
    return _still(ticks, radius, rng, x=x, y=HIGH - rng.uniform(0.5, 0.6) * (1 - hop**2))


def _oscillate(rng: np.random.Generator, ticks: Array, radius: float) -> Motion:
    """To and fro on a short line."""
    period, direction = rng.choice([8, 10]), rng.choice([0.0, 0.25, 0.5, 0.75]) * np.pi
    swing = 0.17 * (2 * _triangle(ticks + rng.integers(period), period) - 1)
    x, y = rng.uniform(0.36, 0.64, 2)
    return _still(ticks, radius, rng, x=x + swing * np.cos(direction), y=y + swing * np.sin(direction))


def _pulse(rng: np.random.Generator, ticks: Array, radius: float) -> Motion:
    """Grows and shrinks in place."""
    period = rng.choice([8, 10, 12])
    x, y = rng.uniform(0.38, 0.62, 2)
    motion = _still(ticks, radius, rng, x=np.full_like(ticks, x), y=np.full_like(ticks, y))
    motion.radius = motion.radius * (0.6 + 1.2 * _triangle(ticks + rng.integers(period), period))
    return motion


def _rotate(rng: np.random.Generator, ticks: Array, radius: float) -> Motion:
    """Turns in place, either way round."""
    x, y = rng.uniform(0.34, 0.66, 2)
    motion = _still(ticks, 1.35 * radius, rng, x=np.full_like(ticks, x), y=np.full_like(ticks, y))
    motion.angle = motion.angle + rng.choice([-1, 1]) * 2 * np.pi * ticks / rng.integers(12, 19)
    motion.is_two_toned = True
    return motion


def _pass_behind(rng: np.random.Generator, ticks: Array, radius: float) -> Motion:
    """To and fro behind an upright bar in the middle."""
    period = 2 * rng.integers(7, 10)
    x = LOW + (HIGH - LOW) * _triangle(ticks + rng.integers(period), period)
    motion = _still(ticks, radius, rng, x=x, y=np.full_like(ticks, rng.uniform(0.3, 0.7)))
    motion.has_bar = True
    return motion


def _zigzag(rng: np.random.Generator, ticks: Array, radius: float) -> Motion:
    """Steadily sideways in steep steps up and down."""
    period, drift = rng.choice([6, 8]), 2 * rng.integers(12, 17)
    x = LOW + (HIGH - LOW) * _triangle(ticks + rng.integers(drift), drift)
    y = rng.uniform(0.42, 0.58) + 0.22 * (2 * _triangle(ticks + rng.integers(period), period) - 1)
    return _still(ticks, radius, rng, x=x, y=y)


CLASSES: dict[str, Callable[[np.random.Generator, Array, float], Motion]] = {
    "bounce": _bounce,
    "fall": _fall,
    "orbit": _orbit,
    "oscillate": _oscillate,
    "pass_behind": _pass_behind,
    "pulse": _pulse,
    "rotate": _rotate,
    "zigzag": _zigzag,
}


def _still(ticks: Array, radius: float, rng: np.random.Generator, *, x: Array, y: Array) -> Motion:
    return Motion(x, y, np.full_like(ticks, radius), np.full_like(ticks, rng.uniform(0, 2 * np.pi)))


def _triangle(ticks: Array, period: int | np.integer) -> Array:
    """0 -> 1 -> 0 in straight lines, once per period."""
    return 1 - np.abs(2 * ((ticks % period) / period) - 1)


# ----------------------------------------------------------------------------------------------------------------------
# Drawing: signed distances with a border of one pixel


def _grid(size_px: int) -> tuple[Array, Array]:
    centres = (np.arange(size_px, dtype=np.float32) + 0.5) / size_px
    return centres[None, :], centres[:, None]


def _background(rng: np.random.Generator, size_px: int) -> Array:
    x, y = _grid(size_px)
    first, second = MUTED[rng.permutation(len(MUTED))[:2]]
    turn, width = rng.uniform(0, np.pi), rng.uniform(0.14, 0.22)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    weights = {
        "gradient": along - along.min(),
        "stripes": 0.5 + 0.5 * _soft_sign(np.sin(np.pi * along / width)),
        "checks": 0.5 + 0.5 * _soft_sign(np.sin(np.pi * along / width) * np.sin(np.pi * across / width)),
    }
    weight = np.clip(weights[str(rng.choice(list(weights)))], 0, 1)[..., None]
    return (first + (second - first) * weight).astype(np.float32)


def _soft_sign(wave: Array) -> Array:
    return np.clip(3 * wave, -1, 1)


def _paint(canvas: Array, rng: np.random.Generator, motion: Motion) -> Array:
    size_px = canvas.shape[1]
    x, y = _grid(size_px)
    shape, hue = str(rng.choice(SHAPES)), HUES[rng.integers(len(HUES))].astype(np.float32)
    radius, angle = motion.radius[:, None, None].astype(np.float32), motion.angle[:, None, None]
    dx, dy = x - motion.x[:, None, None].astype(np.float32), y - motion.y[:, None, None].astype(np.float32)
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    u, v = dx * cosine + dy * sine, dy * cosine - dx * sine
    cover = np.clip(0.5 - _distance(shape, u, v, radius) * size_px, 0, 1)[..., None]
    colour: Array = hue
    if motion.is_two_toned:
        light = np.clip(0.5 + u * size_px, 0, 1)[..., None]
        colour = hue + (1 - hue) * (0.75 * light)
    return canvas + (colour - canvas) * cover


def _distance(shape: str, u: Array, v: Array, radius: Array) -> Array:
    if shape == "disc":
        return np.hypot(u, v) - radius
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.8 * radius
    # An equilateral triangle: three half planes around the centre.
    return np.maximum(np.maximum(-v, 0.866 * u + 0.5 * v), 0.5 * v - 0.866 * u) - 0.6 * radius


def _paint_bar(canvas: Array, rng: np.random.Generator) -> Array:
    size_px = canvas.shape[1]
    x, y = _grid(size_px)
    half_width = rng.uniform(0.085, 0.1)
    cover = np.clip(0.5 - (np.abs(x - 0.5) - half_width) * size_px, 0, 1)[..., None]
    texture = 0.5 + 0.5 * _soft_sign(np.sin(2 * np.pi * (y + x) / 0.25))[..., None]
    dark, light = np.array((0.16, 0.13, 0.12)), np.array((0.42, 0.36, 0.3))
    return canvas + ((dark + (light - dark) * texture) - canvas) * cover


# ----------------------------------------------------------------------------------------------------------------------
# Files


def _path(config: MovingShapesConfig, name: str, index: int) -> Path:
    return Path(config.output) / name / f"{name}_{index:04d}.mp4"


def _write(config: MovingShapesConfig, name: str, index: int) -> None:
    path = _path(config, name, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    encode_mp4(render(config, name, index), path, fps=config.fps, crf=CRF)


def _check(config: MovingShapesConfig) -> None:
    if config.size_px < 16 or config.size_px % 2:
        raise Refusal(f"size_px={config.size_px}: expected an even number from 16")
    for key in ("videos_per_class", "num_frames", "fps"):
        if getattr(config, key) < 1:
            raise Refusal(f"{key}={getattr(config, key)}: expected at least 1")


def _claim(config: MovingShapesConfig) -> None:
    """Notes the settings in the folder, and refuses a folder that other settings were used for."""
    wanted = {key: value for key, value in asdict(config).items() if key not in {"output", "videos_per_class"}}
    path = Path(config.output) / "moving_shapes.json"
    if path.exists() and (found := json.loads(path.read_text())) != wanted:
        raise Refusal(
            f"{config.output} holds videos made with {found}, expected {wanted}; give another output or delete it"
        )
    write_json(path, wanted)


if __name__ == "__main__":
    with refusals_end_the_program("moving_shapes"):
        main()
