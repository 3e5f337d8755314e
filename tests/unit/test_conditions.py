"""What generation starts from: video files, classes, shares of ranks, and what is refused before anything is made."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.conditions import Batch, Conditions, _translate, read_video, show_condition
from magvit_scale.config import ClipsConfig, GenerateConfig, Refusal, Task, TransformerConfig, VQGANConfig, load
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.training.ranks import Ranks
from magvit_scale.video import encode_mp4
from magvit_scale.vqgan.autoencoder import VQGAN

NUM_FRAMES, SIZE_PX = 4, 16
TOKENIZER = VQGANConfig(
    base_channels=4, channel_multipliers=(1, 1, 1), num_res_blocks=1, temporal_downsample=(True, False),
    embedding_dim=4, codebook_size=16, num_groups=2,
)  # fmt: skip
TRANSFORMER = TransformerConfig(
    num_layers=1, hidden_size=8, mlp_dim=8, num_heads=2, latent_shape=(2, 4, 4), codebook_size=16, num_classes=3
)


def pipeline(classes: tuple[str, ...] = (), **changes: Any) -> MagvitPipeline:
    transformer = CommitTransformer(replace(TRANSFORMER, **changes)).eval()
    return MagvitPipeline(VQGAN(TOKENIZER).eval(), transformer, classes)


def config(**changes: Any) -> GenerateConfig:
    return load(GenerateConfig, [{"model": "x", "output": "y", "tasks": ["CG"], **changes}])


def write_video(path: Path, num_frames: int, level: int = 0) -> str:
    """Frame i is of the grey level + 10 i, 24 x 40 px, black at its left and right end."""
    frames = np.full((num_frames, 24, 40, 3), level, np.uint8)
    frames += 10 * np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    frames[:, :, :6] = frames[:, :, -6:] = 0
    encode_mp4(frames, path, fps=8, crf=0)
    return str(path)


def batches(asked: GenerateConfig, rank: int = 0, world_size: int = 1, **models: Any) -> list[Batch]:
    return list(Conditions(asked, pipeline(**models)).batches(Ranks(rank, world_size, torch.device("cpu"))))


def test_a_video_is_scaled_cropped_and_strided_from_its_first_frame(tmp_path: Path) -> None:
    frames = read_video(write_video(tmp_path / "a.mp4", 9, 40), 4, 2, SIZE_PX)
    assert frames.shape == (4, 16, 16, 3)
    # The crop takes the black ends away; lossless x264 through YUV rounds by a level or two.
    np.testing.assert_allclose(frames[:, 2:-2, 2:-2].mean((1, 2, 3)), [40, 60, 80, 100], atol=2)


def test_a_video_of_too_few_frames_or_none_is_refused(tmp_path: Path) -> None:
    short = write_video(tmp_path / "short.mp4", 6)
    with pytest.raises(Refusal, match=r"short\.mp4: 6 frames, expected at least 7 for 4 at clips\.frame_stride=2"):
        read_video(short, 4, 2, SIZE_PX)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(Refusal, match=r"broken\.mp4: .*; give another video") as refusal:
        read_video(str(tmp_path / "broken.mp4"), 4, 1, SIZE_PX)
    assert "\n" not in str(refusal.value)


def test_videos_and_labels_are_taken_in_turn_by_all_ranks_together(tmp_path: Path) -> None:
    videos = [write_video(tmp_path / "a.mp4", 4, 20), write_video(tmp_path / "b.avi.mp4", 5, 120)]
    asked = config(videos=videos, labels=["2", "Bowling", "-1"], samples_per_task=5, batch_size=2, tasks=["FP"])
    found = {}
    for rank in range(2):
        for batch in batches(asked, rank, 2, classes=("Archery", "Bowling", "Crawling")):
            assert len(batch.numbers) <= 2
            assert batch.clips.shape[1:] == (3, NUM_FRAMES, SIZE_PX, SIZE_PX)
            for number, clip, label in zip(batch.numbers, batch.clips, batch.labels.tolist(), strict=True):
                assert number % 2 == rank
                found[number] = (label, clip[:, 0, 8, 8].mean().item())
    assert {number: label for number, (label, _) in found.items()} == {0: 2, 1: 1, 2: -1, 3: 2, 4: 1}
    levels = [255 * found[number][1] for number in range(5)]
    np.testing.assert_allclose(levels, [20, 120, 20, 120, 20], atol=2)


def test_classes_alone_start_from_grey() -> None:
    asked = config(labels=["1"], samples_per_task=3)
    conditions = Conditions(asked, pipeline())
    assert not conditions.has_clips
    assert conditions.classes == ("0", "1", "2")
    (batch,) = batches(asked)
    assert (batch.numbers, batch.labels.tolist()) == ([0, 1, 2], [1, 1, 1])
    assert (batch.clips == 128 / 255).all()


def test_a_task_that_is_told_a_class_is_refused_without_one() -> None:
    """Nobody has trained it so; where it is wanted, -1 says it."""
    with pytest.raises(
        Refusal, match=r"task CG \(class-conditional generation\) needs classes, found none: give labels"
    ):
        Conditions(config(), pipeline())
    assert batches(config(labels=["-1"], samples_per_task=1))[0].labels.tolist() == [-1]
    assert batches(config(samples_per_task=1), num_classes=0)[0].labels.tolist() == [-1]


def test_a_rank_without_samples_has_no_batch() -> None:
    assert batches(config(samples_per_task=1, labels=["1"]), rank=1, world_size=2) == []


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"samples_per_task": 0}, "samples_per_task=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"tasks": ["OPC"]}, r"task OPC \(central outpainting\): .* trained for FP, CG"),
        ({"tasks": ["FP"]}, r"task FP \(frame prediction\) needs a condition: give clips\.shards"),
        ({"num_frames": 8}, r"num_frames=8: CG .*clips of 4 frames only"),
        ({"num_frames": 3}, "3 frames, expected at least the 4"),
        ({"overlap_frames": 4}, "overlap_frames=4"),
        ({"labels": ["Bowlin"]}, "'Bowlin'; the nearest is 'Bowling'"),
        ({"labels": ["3"]}, r"class \[3\], expected ids in \[0, 3\)"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(Refusal, match=words) as refusal:
        Conditions(config(**asked), pipeline(("Archery", "Bowling", "Crawling"), tasks=("FP", "CG")))
    assert "\n" not in str(refusal.value)


def test_classes_of_other_clips_are_the_models_by_name() -> None:
    asked, known = config(clips={"shards": "x"}), ("Archery", "Bowling")
    assert _translate(("Bowling", "Archery"), known, asked) == [1, 0]
    with pytest.raises(Refusal, match="clips of class 'Diving', the models know Archery, Bowling; give labels"):
        _translate(("Bowling", "Diving"), known, asked)
    for indifferent in (config(tasks=["FP"]), config(labels=["Archery"])):
        assert _translate(("Bowling", "Diving"), known, indifferent) == [1, -1]


@pytest.mark.parametrize("given", [{}, {"tokenizer": "a"}, {"transformer": "a"}, {"model": "a", "transformer": "b"}])
def test_models_are_named_in_one_of_two_ways(given: dict[str, str]) -> None:
    with pytest.raises(Refusal, match="expected either model=FOLDER, or tokenizer=FOLDER and transformer=FOLDER"):
        GenerateConfig(output="x", clips=ClipsConfig(), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "frames"),
    [("FP", [0]), ("FI", [0, 3, 6]), ("CG", [])],
)
def test_a_long_condition_shows_what_any_window_is_given(task: Task, frames: list[int]) -> None:
    # Windows of 4 frames at 0 and 3.
    clips = torch.full((1, 3, 7, SIZE_PX, SIZE_PX), 0.9)
    found = show_condition(config(overlap_frames=1), pipeline(), task, clips)
    assert [frame for frame in range(7) if (found[:, :, frame] == 0.9).all()] == frames
    assert [frame for frame in range(7) if (found[:, :, frame] == 0.5).all()] == sorted({*range(7)} - {*frames})
