"""Fetching weights from a real server on this machine: nothing takes its place unchecked."""

import fcntl
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from magvit_scale.config import Refusal
from magvit_scale.fetch_weights import main
from magvit_scale.weights import WEIGHTS, find_weights
from tests.file_server import CONTENT, Serve, file_servers

PUBLISHED, UNPUBLISHED, BLOB = "i3d-ts", "c3d-chainer", "i3d-sd"


def archive(text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(zipfile.ZipInfo("conv1a/W.npy"), text)  # of 1980: with the clock's time two calls may differ
    return buffer.getvalue()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAGVIT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setitem(WEIGHTS, PUBLISHED, replace(WEIGHTS[PUBLISHED], sha256=sha(CONTENT)))
    monkeypatch.setitem(WEIGHTS, BLOB, replace(WEIGHTS[BLOB], git_blob="ce013625030ba8dba906f756967f9e9ca394464a"))
    return tmp_path / "weights"


@pytest.fixture
def serve() -> Iterator[Serve]:
    with file_servers() as start:
        yield start


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"fetch.lock"}


def test_a_published_file_comes_from_its_address(
    folder: Path,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setitem(WEIGHTS, PUBLISHED, replace(WEIGHTS[PUBLISHED], url=serve(asked=asked) + "/x?dl=1"))
    main([f"names=[{PUBLISHED}]"])
    assert find_weights(PUBLISHED).read_bytes() == CONTENT
    assert asked == [("/x?dl=1", None)]
    assert files(folder) == {"i3d_torchscript.pt"}
    main([f"names=[{PUBLISHED}]"])
    assert len(asked) == 1
    assert f"{PUBLISHED}: {folder / 'i3d_torchscript.pt'} is here and right" in capsys.readouterr().out


def test_the_list_fetches_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list", f"names=[{PUBLISHED}]"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["folder:", "name", PUBLISHED]
    assert not folder.exists()


def test_a_mirror_holds_the_file_under_its_name_and_a_partial_file_is_continued(
    folder: Path,
    serve: Serve,
) -> None:
    asked: list[tuple[str, str | None]] = []
    folder.mkdir()
    (folder / "i3d_torchscript.pt.part").write_bytes(CONTENT[:4000])
    main([f"names=[{PUBLISHED}]", f"mirror={serve(asked=asked)}/deep/"])
    assert asked == [("/deep/i3d_torchscript.pt", "bytes=4000-")]
    assert find_weights(PUBLISHED).read_bytes() == CONTENT


def test_a_wrong_hash_leaves_nothing_and_tells_both_values(folder: Path, serve: Serve) -> None:
    url = serve(content=b"wrong")
    with pytest.raises(Refusal, match=f"sha256 {sha(b'wrong')} .*expected sha256 {sha(CONTENT)}.*came from {url}"):
        main([f"names=[{PUBLISHED}]", f"mirror={url}"])
    assert files(folder) == set()


def test_a_wrong_file_in_its_place_stays_until_the_right_one_has_come(folder: Path, serve: Serve) -> None:
    folder.mkdir()
    path = folder / "i3d_torchscript.pt"
    path.write_bytes(b"old")
    with pytest.raises(Refusal, match="has sha256"):
        main([f"names=[{PUBLISHED}]", f"mirror={serve(content=b'wrong')}"])
    assert path.read_bytes() == b"old"
    main([f"names=[{PUBLISHED}]", f"mirror={serve()}"])
    assert path.read_bytes() == CONTENT


def test_a_file_whose_hash_nobody_knows_is_pinned_and_a_later_one_must_be_the_same(
    folder: Path,
    serve: Serve,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, other = archive("first"), archive("other")
    main([f"names=[{UNPUBLISHED}]", f"mirror={serve(content=first)}"])
    assert json.loads((folder / "pins.json").read_text()) == {UNPUBLISHED: sha(first)}
    assert f"sha256 {sha(first)} is pinned from now on" in capsys.readouterr().out
    path = find_weights(UNPUBLISHED)
    path.unlink()
    with pytest.raises(Refusal, match=f"sha256 {sha(other)} .*expected sha256 {sha(first)}, pinned in "):
        main([f"names=[{UNPUBLISHED}]", f"mirror={serve(content=other)}"])
    assert files(folder) == {"pins.json"}
    main([f"names=[{UNPUBLISHED}]", f"mirror={serve(content=first)}"])
    assert path.read_bytes() == first


def test_two_versions_of_a_file_without_a_hash_are_never_joined(folder: Path, serve: Serve) -> None:
    asked: list[tuple[str, str | None]] = []
    folder.mkdir()
    (folder / "conv3d_deepnetA_ucf.npz.part").write_bytes(archive("former")[:50])
    main([f"names=[{UNPUBLISHED}]", f"mirror={serve(content=archive('first'), asked=asked)}"])
    assert [wanted for _, wanted in asked] == [None]
    assert find_weights(UNPUBLISHED).read_bytes() == archive("first")


@pytest.mark.parametrize("content", [b"<html>please log in</html>", archive("first")[:-30]])
def test_a_page_or_half_a_file_is_not_pinned(folder: Path, serve: Serve, content: bytes) -> None:
    with pytest.raises(Refusal, match=r"is no complete zip archive .*was not kept"):
        main([f"names=[{UNPUBLISHED}]", f"mirror={serve(content=content)}"])
    assert files(folder) == set()


def test_a_file_known_by_its_git_blob_is_pinned_only_if_it_is_that(folder: Path, serve: Serve) -> None:
    with pytest.raises(Refusal, match=r"is git blob .*expected git blob ce013625030ba8dba906f756967f9e9ca394464a"):
        main([f"names=[{BLOB}]", f"mirror={serve(content=b'wrong')}"])
    assert files(folder) == set()
    main([f"names=[{BLOB}]", f"mirror={serve(content=bytes([*b'hello', 10]))}"])
    assert json.loads((folder / "pins.json").read_text()) == {BLOB: sha(b"hello\n")}


def test_a_local_file_is_imported_by_the_same_checks(folder: Path, tmp_path: Path) -> None:
    given = tmp_path / "download(1).pt"
    given.write_bytes(b"wrong")
    with pytest.raises(Refusal, match=f"sha256 {sha(b'wrong')} .*expected sha256 {sha(CONTENT)}"):
        main([f"names=[{PUBLISHED}]", f"file={given}"])
    assert files(folder) == set()
    given.write_bytes(CONTENT)
    main([f"names=[{PUBLISHED}]", f"file={given}"])
    assert find_weights(PUBLISHED).read_bytes() == CONTENT
    assert given.exists()


def test_a_file_put_there_by_hand_is_pinned_without_a_download(folder: Path) -> None:
    folder.mkdir()
    (folder / "conv3d_deepnetA_ucf.npz").write_bytes(archive("first"))
    main([f"names=[{UNPUBLISHED}]"])
    assert find_weights(UNPUBLISHED).read_bytes() == archive("first")


def test_the_list_tells_what_is_here(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir()
    (folder / "i3d_torchscript.pt").write_bytes(CONTENT)
    (folder / "vgg16-397923af.pth").write_bytes(b"wrong")
    (folder / "conv3d_deepnetA_ucf.npz").write_bytes(archive("first"))
    main([f"names=[{UNPUBLISHED}]"])
    (folder / "mean2.npz").write_bytes(archive("mean"))
    capsys.readouterr()
    main([])
    everything = capsys.readouterr().out
    main(["list=true"])
    assert capsys.readouterr().out == everything
    lines = everything.splitlines()
    assert lines[0] == f"folder: {folder}"
    rows = {line.split()[0]: " ".join(line.split()) for line in lines[2:]}
    assert set(rows) == set(WEIGHTS)
    assert f"i3d_torchscript.pt 51,235,320 {sha(CONTENT)[:16]}... right weights Apache-2.0" in rows[PUBLISHED]
    assert "397923af8e79cdbb... wrong code BSD-3" in rows["vgg16-in1k-v1"]
    assert f"npz ? pinned {sha(archive('first'))[:16]}... right MIT" in rows[UNPUBLISHED]
    assert "mean2.npz ? not pinned not pinned MIT" in rows["c3d-chainer-mean"]
    assert "c3d_ucf101.pt ? not pinned missing none stated" in rows["c3d-ts"]


def test_two_fetching_programs_do_not_write_the_same_file(folder: Path) -> None:
    folder.mkdir()
    with (folder / "fetch.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Refusal, match="another fetch-weights is at work"):
            main([f"names=[{PUBLISHED}]"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["names=[i3d]"], "names=i3d: no such weights, expected one of i3d-"),
        (["names=[i3d-ts]", "mirror=file:///etc"], "expected http://"),
        (["names=[i3d-ts]", "mirror=http://a", "file=b"], "expected one of them"),
        (["names=[i3d-ts,i3d-sd]", "file=b"], "2 names, expected one"),
        (["file=b"], "0 names, expected one"),
    ],
)
def test_bad_arguments_are_refused_before_anything_happens(folder: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(Refusal, match=words):
        main(arguments)
    assert not folder.exists()
