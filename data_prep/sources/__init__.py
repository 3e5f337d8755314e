"""Data sets as they are published -> which files, of which class, in which split; and the frames of any of them.

A manifest names three kinds of file: videos, images, and videos inside a TFRecord file ("FILE#RECORD"). What is done
with a file by its kind is done here, for list_videos and write_shards alike.
"""

from collections.abc import Callable
from pathlib import Path

from data_prep import images
from data_prep.bair import decode_record, is_record, probe_record, split_record
from data_prep.sources.bair import list_bair
from data_prep.sources.csv_file import list_csv
from data_prep.sources.folder import list_folder, list_images
from data_prep.sources.kinetics import list_kinetics
from data_prep.sources.listing import Item, Listing, refuse_other_counts
from data_prep.sources.ssv2 import list_ssv2
from data_prep.sources.ucf101 import list_ucf101
from magvit_scale import video
from magvit_scale.config import ListVideosConfig, Refusal
from magvit_scale.files import sha256

__all__ = ["Item", "Listing", "decode", "file_of", "find", "is_video_file", "probe", "refuse_other_counts"]

SOURCES: dict[str, Callable[[ListVideosConfig, Path], Listing]] = {
    "folder": list_folder,
    "csv": list_csv,
    "ucf101": list_ucf101,
    "kinetics": list_kinetics,
    "ssv2": list_ssv2,
    "bair": list_bair,
    "images": list_images,
}
ANNOTATIONS = {
    "csv": "annotations=FILE.csv with the columns path, label, split",
    "ucf101": "annotations=FOLDER with classInd.txt, trainlist01.txt and testlist01.txt",
    "kinetics": "annotations=FILE.csv, or a folder of them, with label, youtube_id, time_start, time_end, split",
    "ssv2": "annotations=FOLDER with the labels, train and validation JSON",
}


def find(config: ListVideosConfig, folder: Path) -> Listing:
    """The files of a data set, before any of them is read.

    Raises:
        Refusal: the folder, its files or the annotations are missing, damaged, or not in the published numbers.
    """
    if not folder.is_dir():
        raise Refusal(f"videos={folder}: no such folder; expected the files of source={config.source}")
    expected = ANNOTATIONS.get(config.source)
    if expected and config.annotations is None:
        raise Refusal(f"source={config.source}: no annotations; expected {expected}")
    if config.annotations is not None and not expected:
        raise Refusal(f"annotations={config.annotations}: source={config.source} has none; give source=csv or another")
    listing = SOURCES[config.source](config, folder)
    refuse_other_counts(config, listing, [item.split for item in listing.items] + ["missing"] * len(listing.missing))
    return listing


def probe(path: Path) -> tuple[video.VideoInfo, str]:
    """Decodes a whole file of any kind, because headers lie: what it holds, and its sha256.

    The checksum of a TFRecord's video is that of its frames, `t h w c`.

    Raises:
        VideoError: it does not decode.
        OSError: it cannot be read.
    """
    if is_record(path):
        return probe_record(path)
    return (images.probe_image(path) if images.is_image(path) else video.probe(path)), sha256(path)


def decode(
    path: Path,
    *,
    size_px: int,
    keep_aspect: bool = False,
    fps: float | None = None,
    max_frames: int | None = None,
) -> video.Frames:
    """The frames of any file that a manifest names (`folder` / `path`), at a constant rate.

    Args:
        path: a video, an image, or "FILE#RECORD".
        size_px: the short side is resized to it.
        keep_aspect: keeps the long side whole; otherwise it is cropped at both ends, so that the frames are square.
        fps: frames per second, of videos; None keeps the source's. BAIR has no rate: all its frames are taken.
        max_frames: stop after this many.

    Returns:
        uint8 't h w 3', RGB; one frame of an image.

    Raises:
        VideoError: it does not decode.
    """
    if is_record(path):
        return decode_record(path, size_px=size_px)[:max_frames]
    if images.is_image(path):
        return images.decode_image(path, size_px=size_px, keep_aspect=keep_aspect)
    return video.decode(path, size_px=size_px, keep_aspect=keep_aspect, fps=fps, max_frames=max_frames)


def is_video_file(path: Path) -> bool:
    """Whether ffmpeg can read it by itself: neither an image nor a record of another file."""
    return not is_record(path) and not images.is_image(path)


def file_of(path: Path) -> Path:
    """The file on the disk: of "FILE#RECORD" the FILE, else the path itself."""
    return split_record(path)[0] if is_record(path) else path
