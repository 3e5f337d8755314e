"""A table of one's own: path, and label and split where there are any."""

from pathlib import Path

from data_prep.sources.annotations import path_inside, read_csv
from data_prep.sources.listing import Item, Listing, held_out, split_named
from magvit_scale.config import ListVideosConfig, Refusal


def list_csv(config: ListVideosConfig, folder: Path) -> Listing:
    """The files that the table names, in its order.

    Raises:
        Refusal: no column `path`, an empty table, a path that leaves the folder or comes twice, an empty label, or an
            unknown split.
    """
    items: dict[str, Item] = {}
    for where, row in read_csv(Path(str(config.annotations)), ("path",), ("label", "split")):
        item = _item(where, row)
        if item.path in items:
            raise Refusal(f"{where}: {item.path} comes twice; expected one line per video")
        items[item.path] = item
    if not items:
        raise Refusal(f"annotations {config.annotations}: no videos in it; expected a line per video")
    kept, notes = held_out(list(items.values()))
    missing = {item.path: "not on disk" for item in kept if not (folder / item.path).is_file()}
    return Listing([item for item in kept if item.path not in missing], missing, notes=notes)


def _item(where: str, row: dict[str, str]) -> Item:
    if row.get("label") == "":
        raise Refusal(f"{where}: an empty label; expected a class, or no column `label`")
    split = split_named(row["split"], where) if "split" in row else None
    return Item(path_inside(row["path"], where), row.get("label"), split)
