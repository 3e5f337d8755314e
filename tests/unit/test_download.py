"""One file over http from a real server on this machine: whole, resumed, cut, redirected, silent."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from magvit_scale import download as module
from magvit_scale.config import Refusal
from magvit_scale.download import blocks, download
from tests.file_server import CONTENT, Serve, file_servers


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.0)
    with file_servers() as start:
        yield start


def test_a_whole_file(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download(serve() + "/file", tmp_path / "file", is_continued=True)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert "10.2k/10.2k" in capsys.readouterr().err  # the bar counts bytes


def test_the_rest_of_a_file_is_asked_for_and_appended(serve: Serve, tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []
    # Its own beginning, so that one can tell what was kept from what was sent.
    (tmp_path / "file").write_bytes(bytes(1000))
    download(serve(asked=asked) + "/file", tmp_path / "file", is_continued=True)
    assert asked == [("/file", "bytes=1000-")]
    assert (tmp_path / "file").read_bytes() == bytes(1000) + CONTENT[1000:]


def test_a_server_without_ranges_starts_anew(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    download(serve(knows_ranges=False) + "/file", tmp_path / "file", is_continued=True)
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("extra", [0, 5])
def test_a_file_that_needs_no_rest_is_kept_and_one_that_is_too_long_is_not(
    serve: Serve, tmp_path: Path, extra: int
) -> None:
    asked: list[tuple[str, str | None]] = []
    (tmp_path / "file").write_bytes(CONTENT + bytes(extra))
    download(serve(asked=asked) + "/file", tmp_path / "file", is_continued=True)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [wanted for _, wanted in asked] == [f"bytes={len(CONTENT) + extra}-", *([None] if extra else [])]


@pytest.mark.parametrize(
    ("is_continued", "wanted"), [(True, [None, "bytes=3000-", "bytes=3700-"]), (False, [None, None, None])]
)
def test_a_cut_connection_is_taken_up_where_it_ended_or_anew(
    serve: Serve, tmp_path: Path, is_continued: bool, wanted: list[str | None]
) -> None:
    asked: list[tuple[str, str | None]] = []
    download(serve(cuts=[3000, 700], asked=asked) + "/file", tmp_path / "file", is_continued=is_continued)
    assert [header for _, header in asked] == wanted
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_cuts_every_time_is_given_up_and_what_came_is_kept(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"ended after 50 of 10240 bytes, 5 times; run again \(50 bytes are kept\)"):
        download(serve(cuts=[10] * 9) + "/file", tmp_path / "file", is_continued=True)
    assert (tmp_path / "file").read_bytes() == CONTENT[:50]


def test_errors_that_may_pass_are_tried_again_and_others_are_not(serve: Serve, tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []
    download(serve(codes=[503, 429], asked=asked) + "/file", tmp_path / "file", is_continued=True)
    assert len(asked) == 3
    with pytest.raises(Refusal, match=r"/file: HTTP Error 404: .*; look at the address, or give mirror=URL"):
        download(serve(codes=[404, 404]) + "/file", tmp_path / "other", is_continued=True)
    assert not (tmp_path / "other").exists()


def test_redirects_are_followed_to_http_with_the_range_and_nowhere_else(serve: Serve, tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []
    (tmp_path / "file").write_bytes(CONTENT[:1000])
    download(serve(location=serve(asked=asked) + "/there") + "/moved", tmp_path / "file", is_continued=True)
    assert asked == [("/there", "bytes=1000-")]
    assert (tmp_path / "file").read_bytes() == CONTENT
    for location in ("file:///etc/hostname", "ftp://127.0.0.1/file"):
        with pytest.raises(Refusal, match=r"to .*(file|ftp)://.*is not allowed"):
            download(serve(location=location) + "/moved", tmp_path / "other", is_continued=True)
    assert not (tmp_path / "other").exists()


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "STALLED_AFTER_S", 0.05)
    monkeypatch.setattr(module, "NUM_ATTEMPTS", 1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # listens, and accepts nobody
    with pytest.raises(Refusal, match="timed out, 1 times"):
        download(f"http://127.0.0.1:{server.server_port}/file", tmp_path / "file", is_continued=True)
    server.server_close()


def test_a_trickle_is_given_up_like_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(now) * 10))

    class Trickle:
        def read(self, _: int) -> bytes:
            return b"x"

    with pytest.raises(TimeoutError, match="slower than 10000 bytes per second"):
        list(blocks(Trickle()))  # type: ignore[arg-type]
    assert next(now) < 10
