"""Weights are found where they should be and count by their hash; nothing is downloaded."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from magvit_scale.config import Refusal
from magvit_scale.weights import WEIGHTS, find_weights, weights_folder

NAME = "resnet50-v1"


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
    for part in (NAME, weights.file, str(folder), weights.url, weights.sha256, "MAGVIT_WEIGHTS"):
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize("content", [b"", b"righ", b"wrong"])
def test_another_content_is_refused_with_both_hashes(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS[NAME].file).write_bytes(content)
    with pytest.raises(Refusal, match=f"has sha256 {hashlib.sha256(content).hexdigest()}") as refusal:
        find_weights(NAME)
    weights, text = WEIGHTS[NAME], str(refusal.value)
    for part in (NAME, weights.file, str(folder), f"({len(content)} bytes)", weights.url, weights.sha256):
        assert part in text
    assert "\n" not in text


def test_published_names_carry_the_beginning_of_their_hash() -> None:
    for weights in WEIGHTS.values():
        stem = weights.file.removesuffix(".pth")
        assert weights.sha256.startswith(stem.rsplit("-", 1)[1])
        assert len(weights.sha256) == 64
        assert weights.url.endswith("/" + weights.file)
