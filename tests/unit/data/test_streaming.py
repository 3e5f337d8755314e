from pathlib import Path

import pytest
import torch

from magvit_scale.config import ClipsConfig, Refusal
from magvit_scale.data.clips import held_out_clips, training_batches
from tests.unit.data.conftest import npy, write_tar


@pytest.fixture
def config(tmp_path: Path) -> ClipsConfig:
    for shard in range(2):
        members = []
        for number in range(4):
            key = f"v{4 * shard + number}"
            members += [(f"{key}.npy", npy(4 * shard + number)), (f"{key}.cls", str(number).encode())]
        write_tar(tmp_path / f"{shard}.tar", [*members, (f"bad{shard}.npy", b"x"), (f"none{shard}.txt", b"x")])
    shards = f"pipe:cat {tmp_path}/{{0..1}}.tar"
    return ClipsConfig(shards=shards, size_px=16, num_frames=4, num_workers=0)


def test_a_stream_gives_batches_without_end_and_says_what_it_cannot(
    config: ClipsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = training_batches(config, seed=0, global_batch_size=12, rank=1, world_size=2, start_step=0, steps=9)
    found = list(batches)
    assert [batch["clip"].shape for batch in found] == [(6, 3, 4, 16, 16)] * 9
    clips, labels = (torch.cat([batch[name] for batch in found]) for name in ("clip", "label"))
    assert set((clips[:, 0, 0, 0, 0] // 20).tolist()) == set(range(8))
    assert torch.equal(clips[:, 0, 0, 0, 0] // 20 % 4, labels)
    told = capsys.readouterr().err
    assert "cannot be resumed" not in told
    assert told.count("video bad0 does not decode: unreadable npy") == 1
    assert told.count("video none1 does not decode: no video among txt") == 1
    training_batches(config, seed=0, global_batch_size=2, rank=0, world_size=1, start_step=0, steps=1)
    assert capsys.readouterr().err.count("a stream; this run cannot be resumed") == 1


def test_a_stream_is_not_resumed(config: ClipsConfig) -> None:
    with pytest.raises(Refusal, match=r"a stream cannot go on at step 3; start a new run\.folder"):
        training_batches(config, seed=0, global_batch_size=2, rank=0, world_size=1, start_step=3, steps=1)


def test_held_out_clips_of_a_stream_are_its_first(config: ClipsConfig) -> None:
    batches = list(held_out_clips(config, 5, 3))
    assert [batch["key"] for batch in batches] == [["v0", "v1", "v2"], ["v3", "v4"]]
    assert [len(batch["clip"]) for batch in batches] == [3, 2]
    assert len([key for batch in held_out_clips(config, 100, 3) for key in batch["key"]]) == 8


def test_a_command_that_fails_ends_in_words(config: ClipsConfig) -> None:
    silent = ClipsConfig(shards="pipe:false {0..1}", size_px=16, num_frames=4, num_workers=0)
    with pytest.raises(Refusal, match="the stream gives no clips any more"):
        list(training_batches(silent, seed=0, global_batch_size=2, rank=0, world_size=1, start_step=0, steps=1))
