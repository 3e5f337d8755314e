"""Real files through a real ffmpeg."""

import io
import os
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from av.video.reformatter import Interpolation

from magvit_scale import ffmpeg_process
from magvit_scale.ffmpeg_process import ffmpeg_executable
from magvit_scale.video import VideoError, decode, encode_mp4, mp4_bytes, probe, transcode
from magvit_scale.video_bytes import decode_mp4, verify_mp4
from tests.ramps import moving_ramp, psnr
from tests.real_videos import VIDEOS, needs_videos


@needs_videos
@pytest.mark.parametrize(
    ("name", "width", "height", "fps", "num_frames"),
    [
        ("people/k_demo.mp4", 340, 256, 28, 280),
        ("people/mm_test.avi", 320, 240, 25, 164),
        ("scenes/nasa.mp4", 320, 180, 25, 325),
        ("scenes/pancake.mkv", 426, 240, 30, 310),
        ("odd_formats/rot90.mov", 320, 568, 30, 3),
        ("odd_formats/vfr.mp4", 340, 256, 28, 112),
        ("odd_formats/h264_10b.mp4", 200, 200, 30, 30),
        ("odd_formats/av1.mkv", 640, 360, 25, 125),
        ("odd_formats/h265.mp4", 128, 128, 10, 10),
        ("odd_formats/ts_offset.mp4", 340, 256, 28, 114),
    ],
)
def test_probe_counts_what_decode_returns(name: str, width: int, height: int, fps: float, num_frames: int) -> None:
    info = probe(VIDEOS / name)
    assert (info.width, info.height, info.fps, info.num_frames) == (width, height, fps, num_frames)
    assert info.duration_s == pytest.approx(num_frames / fps)
    assert decode(VIDEOS / name, size_px=16).shape == (num_frames, 16, 16, 3)


@needs_videos
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("audio_only.mp4", "no video stream"),
        ("empty.mp4", "moov atom not found"),
        ("trunc_head.mp4", "moov atom not found"),
        ("trunc.mp4", "Invalid NAL unit size"),
        ("corrupted.mp4", "Invalid NAL unit size"),
        ("flip.mp4", "cabac decode"),
    ],
)
def test_damage_is_found_and_named(name: str, reason: str) -> None:
    with pytest.raises(VideoError, match=reason) as caught:
        probe(VIDEOS / "broken" / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(VideoError, match=reason):
        decode(VIDEOS / "broken" / name, size_px=16)


def test_every_real_broken_file_is_covered() -> None:
    assert not VIDEOS.exists() or len(list((VIDEOS / "broken").iterdir())) == 6


@needs_videos
def test_rate_and_length_can_be_chosen() -> None:
    path = VIDEOS / "people/k_demo.mp4"
    assert decode(path, size_px=16, fps=7).shape == (70, 16, 16, 3)
    first = decode(path, size_px=16, max_frames=5)
    assert np.array_equal(first, decode(path, size_px=16)[:5])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="No such file"):
        probe(tmp_path / "none.mp4")


def test_playlists_reach_no_network(tmp_path: Path) -> None:
    playlist = tmp_path / "list.mp4"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(VideoError):
        probe(playlist)


@pytest.mark.parametrize("name", ["-y.mp4", "a:b.mp4", "a%03d.mp4", "spa ce 'q\".mp4", "ünï.mp4"])
def test_any_file_name_is_only_a_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encode_mp4(moving_ramp(4), Path(name), fps=8)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert probe(name).num_frames == 4
    assert decode(name, size_px=32).shape == (4, 32, 32, 3)


def test_encoding_is_deterministic_close_and_anonymous(tmp_path: Path) -> None:
    frames = moving_ramp(40)
    for name in ("a.mp4", "b.mp4"):
        encode_mp4(frames, tmp_path / name, fps=29.97)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data == (tmp_path / "b.mp4").read_bytes()
    assert b"x264 - core" not in data
    assert b"Lavf" not in data
    assert data.index(b"moov") < data.index(b"mdat")
    assert probe(tmp_path / "a.mp4").fps == 29.97
    decoded = decode_mp4(data, 0, 40)
    assert psnr(decoded, frames) > 42
    # A level of brightness is lost by PyAV before 18, which cannot ask swscale to round exactly.
    tolerance = 0.5 if "ACCURATE_RND" in Interpolation.__members__ else 1.0
    assert np.abs(decoded.mean((0, 1, 2)) - frames.mean((0, 1, 2))).max() < tolerance
    assert psnr(decode(tmp_path / "a.mp4", size_px=32), frames) > 42


@pytest.mark.parametrize("size_px", [2, 16, 34])
def test_tiny_and_single_frames_encode(tmp_path: Path, size_px: int) -> None:
    encode_mp4(moving_ramp(1, size_px), tmp_path / "a.mp4", fps=8)
    assert decode_mp4((tmp_path / "a.mp4").read_bytes(), 0, 1).shape == (1, size_px, size_px, 3)


@pytest.mark.parametrize("shape", [(0, 16, 16, 3), (2, 15, 16, 3), (2, 16, 17, 3)])
def test_impossible_frames_leave_no_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(VideoError, match="even height and width"):
        encode_mp4(np.zeros(shape, np.uint8), tmp_path / "a.mp4", fps=8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("version", "is_taken"), [("4.4.2-0ubuntu0.22.04.1", False), ("5.1.9-0+deb12u1", True), ("n9.0.2", True)]
)
def test_an_old_system_ffmpeg_is_passed_over(
    version: str, is_taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "ffmpeg"
    system.write_text(f"#!/bin/sh\necho 'ffmpeg version {version} Copyright'\n")
    system.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert (ffmpeg_executable.__wrapped__() == str(system)) == is_taken


@needs_videos
@pytest.mark.parametrize(
    "name",
    [
        "people/mm_part0.mp4",
        "people/mm_test.avi",
        "scenes/nasa.mp4",
        "odd_formats/rot90.mov",
        "odd_formats/vfr.mp4",
        "odd_formats/ts_offset.mp4",
        "odd_formats/h264_10b.mp4",
        "odd_formats/av1.mkv",
    ],
)
def test_transcoding_stores_what_decoding_shows(name: str) -> None:
    shown = decode(VIDEOS / name, size_px=64, keep_aspect=True, max_frames=40)
    mp4 = transcode(VIDEOS / name, size_px=64, keep_aspect=True, max_frames=40)
    assert (mp4.num_frames, mp4.height, mp4.width) == shown.shape[:3] == verify_mp4(mp4.data)
    stored = decode_mp4(mp4.data, 0, mp4.num_frames)
    through_rgb = decode_mp4(mp4_bytes(shown, fps=8), 0, mp4.num_frames)
    assert psnr(stored, through_rgb) > 30
    # Frame by frame: a shift by one would win for some.
    distance = np.abs(stored[:, None].astype(int) - through_rgb[None, :].astype(int)).mean((2, 3, 4))
    assert np.all(distance.diagonal() < distance.min(1) + 0.5)
    assert np.array_equal(decode_mp4(mp4.data, len(stored) - 1, len(stored)), stored[-1:])


@needs_videos
def test_a_transcoded_video_is_one_stream_of_short_groups(tmp_path: Path) -> None:
    mp4 = transcode(VIDEOS / "scenes/nasa.mp4", size_px=32, fps=10, max_frames=40)
    assert (mp4.num_frames, mp4.height, mp4.width) == (40, 32, 32)
    with av.open(io.BytesIO(mp4.data)) as container:
        assert len(container.streams) == 1
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.codec_context.name) == (10, "h264")
        pictures = list(container.decode(stream))
    assert [picture.pts * picture.time_base for picture in pictures] == [Fraction(index, 10) for index in range(40)]
    assert [index for index, picture in enumerate(pictures) if picture.key_frame] == [0, 16, 32]
    assert {picture.pict_type for picture in pictures} == {PictureType.I, PictureType.P}
    assert transcode(VIDEOS / "scenes/nasa.mp4", size_px=32, fps=10, max_frames=40) == mp4
    assert b"x264 - core" not in mp4.data
    with pytest.raises(VideoError, match="expected an even size"):
        transcode(VIDEOS / "scenes/nasa.mp4", size_px=31)


@needs_videos
@pytest.mark.parametrize("name", ["audio_only", "corrupted", "empty", "flip", "trunc", "trunc_head"])
def test_transcoding_finds_damage(name: str) -> None:
    with pytest.raises(VideoError) as caught:
        transcode(VIDEOS / f"broken/{name}.mp4", size_px=16)
    with pytest.raises(VideoError, match=re.escape(str(caught.value)[:12])):
        decode(VIDEOS / f"broken/{name}.mp4", size_px=16)


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("kill -TERM $$", ChildProcessError),
        ("kill -KILL $$", ChildProcessError),
        ("exit 255", ChildProcessError),
        ("kill -SEGV $$", VideoError),
        ("echo '[error] Operation not permitted' >&2; exit 255", VideoError),
    ],
)
def test_an_interrupted_ffmpeg_is_no_broken_video(
    ending: str, expected: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "ffmpeg"
    fake.write_text(f"#!/bin/sh\n{ending}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(ffmpeg_process, "ffmpeg_executable", lambda: str(fake))
    with pytest.raises(expected):
        decode("any.mp4", size_px=16)
