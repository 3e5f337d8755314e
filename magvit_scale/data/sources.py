"""The data sets behind a configuration: one, or several that are mixed, each with its order. No torch."""

import hashlib
import itertools
import json
from collections.abc import Mapping

from magvit_scale.config import ClipsConfig, Refusal
from magvit_scale.data.frames import Sample
from magvit_scale.data.order import Order, WindowedOrder
from magvit_scale.data.shards import Dataset, SampleTable, load_dataset
from magvit_scale.files import sha256

REMOTE_WINDOW = 8
"""`shuffle_window` of remote shards where none is given."""
STREAM = "pipe:"


def is_stream(shards: str) -> bool:
    """Whether shards come out of a command, `pipe:COMMAND`."""
    return shards.startswith(STREAM)


def refuse_impossible(config: ClipsConfig) -> None:
    """Checks what no data can satisfy.

    Raises:
        Refusal: a length, side or share is impossible.
    """
    least = {"num_frames": 1, "frame_stride": 1, "num_workers": 0, "size_px": 1, "shuffle_window": 1}
    for key, value in least.items():
        if (found := getattr(config, key)) is not None and found < value:
            raise Refusal(f"clips.{key}={found}: expected at least {value}")
    if not 0 <= config.max_broken_fraction <= 1:
        raise Refusal(f"clips.max_broken_fraction={config.max_broken_fraction}: expected a share in [0, 1]")
    if config.sampled_frames is not None and not 1 <= config.sampled_frames <= config.num_frames:
        raise Refusal(
            f"clips.sampled_frames={config.sampled_frames}: expected 1 to clips.num_frames={config.num_frames}"
        )


def open_clips(config: ClipsConfig) -> Dataset:
    """Opens the clip shards of a configuration with one data set.

    Raises:
        Refusal: missing shards, several sources, larger clips than stored frames, or impossible lengths.
    """
    if config.sources or not config.shards:
        found = "clips.sources" if config.sources else "no clips.shards"
        raise Refusal(f"{found}: expected one data set here; give clips.shards=FOLDER and no clips.sources")
    return _open(config, config.shards)


def has_split(config: ClipsConfig, split: str) -> bool:
    """Whether every data set of a configuration has this split; a stream has all."""
    return is_stream(config.shards) or all(split in _open(config, shards).splits for shards in weights_of(config))


def _open(config: ClipsConfig, shards: str) -> Dataset:
    dataset = load_dataset(shards, cache=config.cache, cache_gb=config.cache_gb)
    if dataset.size_px and config.size_px > dataset.size_px:
        raise Refusal(
            f"clips.size_px={config.size_px}: {shards} holds frames of {dataset.size_px} px; set it to that or less"
        )
    refuse_impossible(config)
    return dataset


def weights_of(config: ClipsConfig) -> dict[str, float]:
    """Weight by shards, of all sources.

    Raises:
        Refusal: neither shards nor sources, both, one data set twice, or a weight that is none.
    """
    if bool(config.shards) == bool(config.sources):
        raise Refusal("clips: give either clips.shards=FOLDER or clips.sources.NAME.shards=FOLDER, and not both")
    for name, source in config.sources.items():
        if not 0 < source.weight < float("inf"):
            raise Refusal(f"clips.sources.{name}.weight={source.weight}: expected a positive number")
        if is_stream(source.shards):
            raise Refusal(f"clips.sources.{name}.shards={source.shards}: a stream cannot be mixed; give clips.shards")
    weights = {source.shards: source.weight for source in config.sources.values()} or {config.shards: 1.0}
    if len(weights) < len(config.sources):
        raise Refusal("clips.sources: one data set twice; give it once, with the sum of the weights")
    return weights


class Source:
    """One data set: its videos by number, and its order.

    Attributes:
        dataset: the shards.
        table: the videos of the split.
        order: in which training takes them.
        class_ids: of the mixture's classes, by this data set's.
    """

    def __init__(self, config: ClipsConfig, shards: str, seed: int) -> None:
        self.dataset = _open(config, shards)
        self.table = SampleTable(self.dataset, config.split)
        remote = self.dataset.remote
        self.window = config.shuffle_window or (REMOTE_WINDOW if remote else None)
        if self.window is None or self.window >= len(self.table.shards):
            self.order = Order(len(self.table), seed)
        else:
            self.order = WindowedOrder(self.table.counts, self.window, seed)
        if remote is not None:
            remote.refuse_small_cache(min(len(self.table.shards), 2 * (self.window or 1)))
        self.class_ids: Mapping[int, int] = {}
        self._fetching: list[int] = []

    def sample(self, position: int) -> Sample:
        """The video at a position of the order."""
        return self.table[self.order.at(position)]

    def fetch_ahead(self, position: int) -> None:
        """Has the shards of this window and of the next fetched."""
        if self.dataset.remote is None:
            return
        shards = self.table.shards
        numbers = list(range(len(shards)))
        if isinstance(self.order, WindowedOrder):
            numbers = list(itertools.islice(self.order.shards_ahead(position), 2 * self.order.window))
        if numbers != self._fetching:
            self._fetching = numbers
            self.dataset.fetch([shards[number] for number in numbers])


def open_sources(config: ClipsConfig, seed: int = 0) -> list[Source]:
    """All data sets of a configuration, their class ids brought to one list of names.

    Raises:
        Refusal: see `_open` and `weights_of`.
    """
    sources = [Source(config, shards, seed) for shards in weights_of(config)]
    names = list(dict.fromkeys(name for source in sources for name in source.dataset.classes))
    for source in sources:
        source.class_ids = {number: names.index(name) for number, name in enumerate(source.dataset.classes)}
    return sources


def fingerprint(config: ClipsConfig) -> str:
    """What a configuration's clips are taken from: changes when a data set is written again, added, left out or weighed
    otherwise, and not when it is moved. Opens every data set; any rank may call it.

    Returns:
        hexadecimal sha256 over name, weight and content of every source, whatever their order. The content is the hash
        of dataset.json, of foreign tars that of their names, sizes and indexes, of a stream its command.

    Raises:
        Refusal: see `_open` and `weights_of`.
    """
    weights = weights_of(config)
    names = {source.shards: name for name, source in config.sources.items()}
    facts = sorted([names.get(shards, ""), weight, _content_of(config, shards)] for shards, weight in weights.items())
    return hashlib.sha256(json.dumps([config.split, facts]).encode()).hexdigest()


def _content_of(config: ClipsConfig, shards: str) -> str:
    if is_stream(shards):
        return shards
    dataset = _open(config, shards)
    if dataset.encoding != "foreign":
        return dataset.hash
    indexes = [shard.index for split in sorted(dataset.splits) for shard in dataset.splits[split]]
    return " ".join([dataset.hash, *map(sha256, indexes)])
