"""A folder of videos or of images, where the name of a file's sub-folder is its class."""

from pathlib import Path, PurePosixPath

from data_prep.images import IMAGE_EXTENSIONS
from data_prep.sources.listing import SPLITS, VIDEO_EXTENSIONS, Item, Listing, files_below, held_out
from magvit_scale.config import ListVideosConfig, Refusal


def list_folder(config: ListVideosConfig, folder: Path) -> Listing:
    """All videos below the folder; the splits are left to `test_fraction`.

    Raises:
        Refusal: there is none.
    """
    return Listing([Item(path, _label(path)) for path in files_below(folder, VIDEO_EXTENSIONS)])


def list_images(config: ListVideosConfig, folder: Path) -> Listing:
    """All images below the folder; its sub-folders train/ and val/ (or validation/, test/) are splits where both are
    there.

    Raises:
        Refusal: there is none, or images of a split have no class folder.
    """
    splits = sorted(path.name for path in folder.iterdir() if path.name in SPLITS and path.is_dir())
    if "train" not in splits or len(splits) == 1:
        return Listing([Item(path, _label(path)) for path in files_below(folder, IMAGE_EXTENSIONS)])
    items = [
        Item(f"{split}/{path}", _label(path), SPLITS[split])
        for split in splits
        for path in files_below(folder / split, IMAGE_EXTENSIONS)
    ]
    kept, notes = held_out(items)
    loose = next((item.path for item in kept if item.label is None), None)
    if loose and any(item.label for item in kept):
        raise Refusal(f"videos={folder}: {loose} is in no class folder; sort the images of every split into the same")
    return Listing(kept, notes=notes)


def _label(path: str) -> str | None:
    parent = PurePosixPath(path).parent
    return None if parent == PurePosixPath() else parent.as_posix()
