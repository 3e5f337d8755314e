"""Clips out of a `pipe:` stream, through webdataset's own reader: for data that can only be piped.

A stream has no positions: shards are drawn with replacement, and every start draws others. So such a run cannot be
resumed; the seekable shards can.
"""

from collections.abc import Iterator
from typing import Any

import webdataset
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from magvit_scale.config import ClipsConfig, Refusal
from magvit_scale.data.cutting import cut_bytes
from magvit_scale.data.loading import Broken, as_it_is, checked, collate, tell
from magvit_scale.data.order import keyed_generator
from magvit_scale.data.tar_index import ENCODINGS, class_of
from magvit_scale.video import VideoError

SHUFFLED_SAMPLES = 100
MAX_FAILURES = 20


def stream_batches(
    config: ClipsConfig, seed: int, batch_size: int, rank: int, start_step: int, steps: int
) -> Iterator[dict[str, Tensor]]:
    """Yields `steps` batches of augmented clips, each rank its own; see `training_batches`.

    Raises:
        Refusal: a resume, or too many videos do not decode.
    """
    if start_step:
        raise Refusal(
            f"clips.shards={config.shards}: a stream cannot go on at step {start_step}; start a new run.folder, or give"
            " shards that can be seeked"
        )
    if rank == 0:
        tell(f"clips.shards={config.shards}: a stream; this run cannot be resumed, its data differ at every start")
    batches = _load(_Stream(config, seed, rank, is_endless=True), config, batch_size, steps)
    return ({"clip": batch["clip"], "label": batch["label"]} for batch in batches)


def stream_centres(config: ClipsConfig, num_clips: int, batch_size: int) -> Iterator[dict[str, Any]]:
    """Yields the centre windows of the first videos of the stream, at most `num_clips`; see `held_out_clips`."""
    clips = _Stream(config, 0, 0, is_endless=False)
    for batch in _load(clips, config, batch_size, -(-num_clips // batch_size)):
        kept = min(batch_size, num_clips)
        num_clips -= kept
        yield {name: values[:kept] for name, values in batch.items()}


class _Stream(IterableDataset[dict[str, Any]]):
    """Cut clips, and what did not decode, as they come."""

    def __init__(self, config: ClipsConfig, seed: int, rank: int, *, is_endless: bool) -> None:
        self.config, self.seed, self.rank, self.is_endless = config, seed, rank, is_endless
        self.num_failures = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if not self.is_endless and worker is not None and worker.id > 0:
            return
        key = ("stream", self.seed, self.rank, 0 if worker is None else worker.id)
        # With replacement: dealing shards out to workers would end some ranks before others, and hang those.
        shards = webdataset.WebDataset(
            self.config.shards, resampled=self.is_endless, shardshuffle=False, empty_check=False, handler=self._go_on,
            seed=int(keyed_generator(*key).integers(1 << 31)), nodesplitter=None, workersplitter=None,
        )  # fmt: skip
        samples = shards.shuffle(SHUFFLED_SAMPLES) if self.is_endless else shards
        for number, sample in enumerate(samples):
            self.num_failures = 0
            yield self._cut(sample, keyed_generator(*key, number) if self.is_endless else None)
        if self.is_endless:
            yield {"failed": {}, "refusal": f"clips.shards={self.config.shards}: the stream gives no clips any more"}

    def _go_on(self, error: Exception) -> bool:
        """What webdataset does about a tar or command that fails: one line, and on, unless nothing else comes."""
        tell(f"stream: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300])
        self.num_failures += 1
        return self.num_failures < MAX_FAILURES

    def _cut(self, sample: dict[str, Any], rng: Any) -> dict[str, Any]:
        key = sample["__key__"]
        extension = next((name for name in sample if name.rpartition(".")[2] in ENCODINGS), None)
        try:
            if extension is None:
                raise VideoError(f"no video among {', '.join(name for name in sample if name[0] != '_')}")
            clip, is_flipped = cut_bytes(sample[extension], ENCODINGS[extension.rpartition(".")[2]], self.config, rng)
            _, class_id = class_of({name: data for name, data in sample.items() if isinstance(data, bytes)})
        except (VideoError, ValueError, RecursionError) as error:
            return {"failed": {key: str(error)}}
        return {"clip": clip, "is_flipped": is_flipped, "label": class_id, "key": key, "failed": {}}


def _load(clips: _Stream, config: ClipsConfig, batch_size: int, steps: int) -> Iterator[dict[str, Any]]:
    """Batches of whole clips; what failed is told beside the next that did not."""
    loader = DataLoader(clips, batch_size=None, num_workers=config.num_workers, collate_fn=as_it_is)
    broken = Broken(config, 1 << 62)
    cut: list[dict[str, Any]] = []
    items = iter(loader)
    for _ in range(steps):
        while sum("clip" in item for item in cut) < batch_size and not any("refusal" in item for item in cut):
            item = next(items, None)
            if item is None:
                break
            cut.append(item)
        if not cut:
            return
        batch, cut = collate(cut, len(cut)), []
        yield checked(batch, broken)
