"""Which real clips a protocol takes, and who takes them."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magvit_scale.config import Refusal
from magvit_scale.metrics.protocol import Protocol, RealClips
from magvit_scale.metrics.protocols import PROTOCOLS
from magvit_scale.metrics.selection import RealClip, select_clips, split_over_ranks


def protocol_of(rule: str, num_clips: int, num_folds: int = 1, **changes: int) -> Protocol:
    real = RealClips(split="train", rule=rule, num_clips=num_clips, **changes)  # type: ignore[arg-type]
    return replace(PROTOCOLS["magvit-ucf101-cg"], name="mine", real=real, num_folds=num_folds, inception_score=None)


def test_bair_takes_the_first_frames_of_every_video_in_every_fold_a_hundred_times() -> None:
    protocol = PROTOCOLS["magvit-bair-fp"]
    clips = select_clips(protocol, [30] * 256)
    assert len(clips) == 4 * 25_600
    folds: list[Counter[RealClip]] = [Counter() for _ in range(4)]
    for place, clip in enumerate(clips):
        folds[place // 25_600][clip] += 1
    assert all(fold == {RealClip(video, 0): 100 for video in range(256)} for fold in folds)


def test_bair_debiased_takes_every_window_of_16_of_30_frames() -> None:
    protocol = PROTOCOLS["magvit-bair-fp-debiased"]
    clips = select_clips(protocol, [30] * 256)
    everything = Counter(RealClip(video, start) for video in range(256) for start in range(15))
    assert Counter(clips[:3_840]) == Counter(clips[3_840 : 2 * 3_840]) == everything
    assert {Counter(clips[:25_600])[clip] for clip in everything} == {6, 7}  # 6 2/3 passes make a fold


def test_kinetics_takes_two_windows_of_three_crops() -> None:
    clips = select_clips(replace(PROTOCOLS["magvit-k600-fp5"], num_folds=1), [250, 17, 10, 17])
    # Video 2 is shorter than a clip.
    starts = [(0, 0), (0, 234), (1, 0), (1, 1), (3, 0), (3, 1)]
    expected = Counter(RealClip(*start, place) for start in starts for place in (0.0, 0.5, 1.0))
    assert Counter(clips[:18]) == Counter(clips[18:36]) == expected


def test_a_fold_of_even_windows_holds_all_classes_of_a_data_set_sorted_by_them() -> None:
    clips = select_clips(protocol_of("even_windows", 200, 2, windows=2), [60] * 1_000)
    for fold in (clips[:200], clips[200:]):
        tenths = Counter(clip.video // 100 for clip in fold)
        assert all(5 < tenths[tenth] < 40 for tenth in range(10))  # 20 each, deviation 4.2


def test_even_windows_are_cut_off_not_rounded() -> None:
    clips = select_clips(protocol_of("even_windows", 4, windows=4), [16 + 10])
    assert sorted(clip.first_frame for clip in clips) == [0, 3, 6, 10]


def test_random_windows_take_every_video_once_before_any_twice() -> None:
    clips = select_clips(protocol_of("random_windows", 25, 2), [16 + n for n in range(20)])
    videos = [clip.video for clip in clips]
    assert len(clips) == 50
    assert sorted(videos[:20]) == sorted(videos[20:40]) == list(range(20))
    assert videos[:20] != videos[20:40] != list(range(20))
    assert all(0 <= clip.first_frame <= clip.video for clip in clips)


def test_random_windows_reach_every_start_alike() -> None:
    clips = select_clips(protocol_of("random_windows", 4_000), [16 + 3] * 100)
    counts = Counter(clip.first_frame for clip in clips)
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(abs(count - 1_000) < 5 * 27.4 for count in counts.values())  # 27.4: binomial deviation


def test_tiles_follow_each_other_and_none_comes_twice() -> None:
    lengths = [16, 47, 48, 15]
    tiles = {(0, 0), (1, 0), (1, 16), (2, 0), (2, 16), (2, 32)}
    everything = select_clips(protocol_of("tiles_without_replacement", 6), lengths)
    assert sorted(everything) == sorted(RealClip(*tile) for tile in tiles)
    assert [tuple(clip[:2]) for clip in everything] != sorted(tiles)
    some = select_clips(protocol_of("tiles_without_replacement", 4), lengths)
    assert len(set(some)) == 4
    assert some == everything[:4]


def test_first_k_takes_the_first_names() -> None:
    clips = select_clips(protocol_of("first_k", 3), [10, 16, 100, 16, 100])
    assert [clip.video for clip in clips] == [1, 2, 3]
    assert [clip.first_frame for clip in clips][::2] == [0, 0]


@pytest.mark.parametrize(
    ("rule", "num_clips", "lengths", "there_are"),
    [("tiles_without_replacement", 7, [16, 47, 48], 6), ("first_k", 3, [16, 16, 15], 2), ("random_windows", 5, [9], 0)],
)
def test_fewer_clips_than_wanted_are_refused_with_both_numbers(
    rule: str, num_clips: int, lengths: list[int], there_are: int
) -> None:
    with pytest.raises(
        Refusal, match=f"mine: {there_are} clips of 16 frames in {len(lengths)} videos, .* {num_clips};"
    ):
        select_clips(protocol_of(rule, num_clips), lengths)


def test_another_number_of_videos_is_another_data_set() -> None:
    with pytest.raises(Refusal, match="larp-10k: 3783 videos in UCF-101, split train, expected 9537; prepare"):
        select_clips(PROTOCOLS["larp-10k"], [200] * 3_783)


def test_the_stride_widens_the_clip() -> None:
    protocol = replace(protocol_of("tiles_without_replacement", 1), frame_stride=3)
    assert select_clips(protocol, [46]) == [RealClip(0, 0)]
    with pytest.raises(Refusal, match="0 clips of 46 frames in 1 videos"):
        select_clips(protocol, [45])


@pytest.mark.parametrize("rule", ["random_windows", "even_windows", "tiles_without_replacement", "first_k"])
def test_the_seed_decides_and_is_the_protocols_where_none_is_given(rule: str) -> None:
    protocol, lengths = protocol_of(rule, 20), [100] * 20
    assert select_clips(protocol, lengths) == select_clips(protocol, lengths, seed=protocol.seed)
    assert select_clips(protocol, lengths) != select_clips(protocol, lengths, seed=1)


def test_classes_of_ssv2_take_training_clips() -> None:
    real = RealClips(split="train", num_videos=3, rule="random_windows", num_clips=6)
    protocol = replace(protocol_of("even_windows", 4), real_of_classes=real)
    assert len(select_clips(protocol, [40, 40, 40], task="CG")) == 6
    assert len(select_clips(protocol, [40, 40], task="FP")) == 4


def test_clips_are_the_same_on_every_machine() -> None:
    clips = select_clips(protocol_of("random_windows", 5), [100, 200, 300])
    assert [tuple(clip[:2]) for clip in clips] == CLIPS_OF_SEED_0


CLIPS_OF_SEED_0 = [(0, 82), (2, 51), (1, 65), (2, 70), (1, 27)]


@given(num_clips=st.integers(0, 300), world_size=st.integers(1, 70))
def test_ranks_take_every_place_exactly_once_and_differ_by_at_most_one(num_clips: int, world_size: int) -> None:
    shares = [split_over_ranks(num_clips, rank, world_size) for rank in range(world_size)]
    assert sorted(place for share in shares for place in share) == list(range(num_clips))
    sizes = {len(share) for share in shares}
    assert max(sizes) - min(sizes) <= 1


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    rule=st.sampled_from(["random_windows", "even_windows", "tiles_without_replacement", "first_k"]),
    num_clips=st.integers(1, 30),
    seed=st.integers(0, 2**32),
)
def test_every_clip_lies_within_its_video_and_counts_are_kept(
    lengths: list[int], rule: str, num_clips: int, seed: int
) -> None:
    try:
        clips = select_clips(protocol_of(rule, num_clips, 2, windows=3), lengths, seed=seed)
    except Refusal:
        return
    assert len(clips) == 2 * num_clips
    assert all(0 <= clip.first_frame <= lengths[clip.video] - 16 for clip in clips)
    if rule in ("tiles_without_replacement", "first_k"):
        assert len(set(clips)) == len(clips)
