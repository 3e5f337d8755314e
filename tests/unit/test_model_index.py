"""model_index.json: what is read back, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from magvit_scale.config import Refusal
from magvit_scale.model_index import ModelIndex, read_index, write_index
from magvit_scale.provenance import version_of


def test_an_index_is_read_back(tmp_path: Path) -> None:
    index = ModelIndex(classes=("Archery", "${oc.env:HOME}"), fps=25)
    write_index(tmp_path, index)
    assert json.loads((tmp_path / "model_index.json").read_text()) == {
        "version": version_of("magvit_scale"),
        "model": "MagvitPipeline",
        "tokenizer": "tokenizer",
        "transformer": "transformer",
        "classes": ["Archery", "${oc.env:HOME}"],
        "fps": 25,
    }
    assert read_index(tmp_path) == index


def test_keys_of_a_later_version_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"model": "MagvitPipeline", "licence": "none"}')
    assert read_index(tmp_path) == ModelIndex()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "VQGAN"}, "is of a VQGAN, expected a MagvitPipeline"),
        ({"tokenizer": "../other"}, r"tokenizer='\.\./other', expected the name of a sub-folder"),
        ({"transformer": "/etc"}, "transformer='/etc'"),
        ({"transformer": ".."}, r"transformer='\.\.'"),
        ({"classes": "Archery"}, "classes=Archery, expected a list of names"),
        ({"classes": [1]}, r"classes=\[1\]"),
        ({"fps": 0}, "fps=0, expected frames per second above 0"),
        ({"fps": "8"}, "fps='8'"),
    ],
)
def test_wrong_values_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"model": "MagvitPipeline"} | changes))
    with pytest.raises(Refusal, match=words) as refusal:
        read_index(tmp_path)
    assert "\n" not in str(refusal.value)


def test_folders_without_an_index_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"no model_index\.json; expected a pipeline folder, or give the tokenizer's"):
        read_index(tmp_path)
    for text, words in (("{", "expected a pipeline's index as JSON"), ("[]", "is of a list")):
        (tmp_path / "model_index.json").write_text(text)
        with pytest.raises(Refusal, match=words):
            read_index(tmp_path)
