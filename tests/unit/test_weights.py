"""Weights are found where they should be and count by their hash; nothing is downloaded."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from magvit_scale.config import Refusal
from magvit_scale.weights import WEIGHTS, expected_sha256, find_weights, git_blob, pin, weights_folder

NAME = "resnet50-v1"
UNPUBLISHED = "c3d-chainer"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAGVIT_WEIGHTS", str(tmp_path))
    monkeypatch.setitem(WEIGHTS, NAME, replace(WEIGHTS[NAME], sha256=hashlib.sha256(b"right").hexdigest()))
    return tmp_path


def test_the_folder_is_the_variable_or_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MAGVIT_WEIGHTS", "~/weights")
    assert weights_folder() == tmp_path / "weights"
    for unset in (lambda: monkeypatch.setenv("MAGVIT_WEIGHTS", ""), lambda: monkeypatch.delenv("MAGVIT_WEIGHTS")):
        unset()
        assert weights_folder() == tmp_path / ".cache/magvit_scale/weights"


def test_the_right_file_is_found(folder: Path) -> None:
    (folder / WEIGHTS[NAME].file).write_bytes(b"right")
    assert find_weights(NAME) == folder / WEIGHTS[NAME].file


def test_a_missing_file_is_refused_with_all_it_takes_to_get_it(folder: Path) -> None:
    (folder / WEIGHTS[NAME].file).mkdir()  # a folder of that name is no file either
    with pytest.raises(Refusal, match="no file") as refusal:
        find_weights(NAME)
    weights, text = WEIGHTS[NAME], str(refusal.value)
    for part in (
        NAME,
        weights.file,
        str(folder),
        weights.url,
        str(weights.sha256),
        "MAGVIT_WEIGHTS",
        f"magvit fetch-weights names=[{NAME}]",
    ):
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize("content", [b"", b"righ", b"wrong"])
def test_another_content_is_refused_with_both_hashes(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS[NAME].file).write_bytes(content)
    with pytest.raises(Refusal, match=f"has sha256 {hashlib.sha256(content).hexdigest()}") as refusal:
        find_weights(NAME)
    weights, text = WEIGHTS[NAME], str(refusal.value)
    for part in (NAME, weights.file, str(folder), f"({len(content)} bytes)", weights.url, str(weights.sha256)):
        assert part in text
    assert "\n" not in text


def test_the_names_of_torchvision_carry_the_beginning_of_their_hash() -> None:
    for name in ("vgg16-in1k-v1", "resnet50-v1"):
        stem = WEIGHTS[name].file.removesuffix(".pth")
        assert (WEIGHTS[name].sha256 or "").startswith(stem.rsplit("-", 1)[1])


def test_every_entry_is_an_address_of_its_file_and_hashes_that_can_be_ones() -> None:
    for weights in WEIGHTS.values():
        assert weights.url.removesuffix("?dl=1").endswith("/" + weights.file)
        assert weights.url.startswith("https://")
        assert weights.sha256 is None or len(bytes.fromhex(weights.sha256)) == 32
        assert weights.git_blob is None or len(bytes.fromhex(weights.git_blob)) == 20
    assert len({weights.file for weights in WEIGHTS.values()}) == len(WEIGHTS)  # they share one folder


def test_the_name_under_which_git_holds_a_file(folder: Path) -> None:
    (folder / "file").write_bytes(b"hello\n")
    assert git_blob(folder / "file") == "ce013625030ba8dba906f756967f9e9ca394464a"  # `git hash-object` on "hello\n"


def test_a_file_whose_hash_nobody_knows_counts_only_after_it_is_pinned(folder: Path) -> None:
    path = folder / WEIGHTS[UNPUBLISHED].file
    path.write_bytes(b"first")
    with pytest.raises(Refusal, match=r"is not pinned.*magvit fetch-weights names=\[c3d-chainer\]"):
        find_weights(UNPUBLISHED)
    pin(UNPUBLISHED, hashlib.sha256(b"first").hexdigest())
    assert find_weights(UNPUBLISHED) == path
    path.write_bytes(b"other")
    with pytest.raises(Refusal, match=f"{hashlib.sha256(b'other').hexdigest()}.*pinned in .*pins.json"):
        find_weights(UNPUBLISHED)


@pytest.mark.parametrize("text", ["{", "[]", '{"c3d-ts": 1}'])
def test_damaged_pins_are_refused_by_name(folder: Path, text: str) -> None:
    (folder / "pins.json").write_text(text)
    with pytest.raises(Refusal, match=r"pins.json: .*mend or remove it"):
        expected_sha256(UNPUBLISHED)
