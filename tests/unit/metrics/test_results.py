"""A result file holds what a comparison needs, and comparisons of unlike things are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from magvit_scale.config import DecodingConfig, Refusal
from magvit_scale.metrics.protocols import PROTOCOLS
from magvit_scale.metrics.results import (
    Result,
    build_result,
    read_result,
    refuse_unlike,
    unlike_published,
    write_result,
)
from magvit_scale.weights import WEIGHTS, Weights

I3D = Weights(file="i3d.pt", url="u", sha256="aa", num_bytes=1, licence="l")
UCF = PROTOCOLS["magvit-ucf101-cg"]


@pytest.fixture(autouse=True)
def _published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTS, "i3d-ts", I3D)
    monkeypatch.delitem(WEIGHTS, "c3d-chainer", raising=False)  # nobody has published its sha256


def result_of(name: str = "magvit-ucf101-cg", **changes: Any) -> Result:
    facts: dict[str, Any] = {
        "folds": {"CG/fvd": [74.0, 78.0, 76.0, 80.0], "CG/inception_score": [80.0]},
        "weights": {"feature_network": "aa", "classifier": "bb"},
        "models": {"tokenizer": "cc", "transformer": "dd"},
        "decoding": DecodingConfig(),
        "seeds": {"clips": 0, "generation": 7},
        "data": {"shards": "0f", "size_px": 128},
        "device": "cpu",
    }
    return build_result(PROTOCOLS[name], **(facts | changes))


def test_mean_and_spread_are_over_the_folds_with_their_number_as_divisor() -> None:
    figures = result_of().figures
    assert (figures["CG/fvd"].mean, figures["CG/fvd"].spread) == pytest.approx((77, 5**0.5))
    assert figures["CG/fvd"].folds == (74, 78, 76, 80)
    assert figures["CG/inception_score"].spread == 0


def test_a_result_says_where_it_comes_from() -> None:
    result = result_of()
    assert (result.protocol, result.protocol_hash) == ("magvit-ucf101-cg", UCF.hash)
    assert result.comparable
    assert result.machine["device"] == "cpu"
    assert {"host", "python", "torch"} <= result.machine.keys()
    assert result.git.keys() == {"commit", "is_modified"}


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = result_of()
    write_result(tmp_path / "a" / "results.json", result)
    found = read_result(tmp_path / "a" / "results.json")
    assert replace(found, conditions={}) == replace(result, conditions={})
    assert json.dumps(found.conditions) == json.dumps(UCF.conditions())
    refuse_unlike(result, found)


def test_untrained_networks_are_stamped_and_the_stamp_cannot_be_lifted(tmp_path: Path) -> None:
    result = result_of(weights={"feature_network": "random"})
    assert not result.comparable
    path = tmp_path / "results.json"
    write_result(path, result)
    path.write_text(path.read_text().replace('"comparable": false', '"comparable": true'))
    with pytest.raises(Refusal, match=r"results.json: .*comparable is true with weights {'feature_network': 'random'}"):
        read_result(path)


def test_another_network_than_the_protocols_compares_with_no_paper() -> None:
    result = result_of(weights={"feature_network": "ee", "classifier": "bb"})
    assert not result.comparable
    assert unlike_published(UCF, result.weights) == ["feature_network has sha256 ee, expected aa (i3d-ts)"]
    assert unlike_published(UCF, {"classifier": "random", "perceptual": "xx"}) == ["classifier is untrained"]


def test_a_figure_of_another_task_is_a_defect() -> None:
    with pytest.raises(ValueError, match="FP/fvd"):
        result_of(folds={"FP/fvd": [1.0]})


@pytest.mark.parametrize(
    ("content", "word"), [("", "Expecting value"), ("[]", "no JSON object"), ('{"protocol": "x"}', "no value for")]
)
def test_another_file_is_refused(tmp_path: Path, content: str, word: str) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(Refusal, match=r"No such file"):
        read_result(path)
    path.write_text(content)
    with pytest.raises(Refusal, match=f"results.json: .*{word}.*; expected a result of magvit evaluate"):
        read_result(path)


def test_unlike_protocols_are_refused_with_both_and_their_first_difference() -> None:
    other = result_of("larp-10k", folds={"CG/fvd": [1.0]})
    with pytest.raises(Refusal) as refusal:
        refuse_unlike(result_of(), other)
    text = str(refusal.value)
    assert "\n" not in text
    assert f"magvit-ucf101-cg {UCF.hash[:12]} and larp-10k {PROTOCOLS['larp-10k'].hash[:12]}" in text
    assert '(classifier: "c3d-chainer" and null)' in text


def test_a_protocol_of_the_same_name_that_was_edited_is_refused() -> None:
    edited = replace(UCF, seed=1)
    result = replace(result_of(), protocol_hash=edited.hash, conditions=edited.conditions())
    with pytest.raises(Refusal, match=r"magvit-ucf101-cg .* and magvit-ucf101-cg .* \(seed: 0 and 1\); evaluate"):
        refuse_unlike(result_of(), result)


def test_unlike_weights_are_refused_with_both() -> None:
    with pytest.raises(Refusal, match="unlike weights of feature_network: aa and random; evaluate both by the same"):
        refuse_unlike(result_of(), result_of(weights={"feature_network": "random", "classifier": "bb"}))


def test_results_without_a_common_figure_are_refused() -> None:
    with pytest.raises(Refusal, match="no common figure: CG/fvd and CG/inception_score"):
        refuse_unlike(result_of(folds={"CG/fvd": [1]}), result_of(folds={"CG/inception_score": [1]}))


def test_models_seeds_and_machines_may_differ() -> None:
    other = result_of(models={"tokenizer": "x"}, seeds={"clips": 3}, device="gpu", decoding=None)
    refuse_unlike(result_of(), other)
