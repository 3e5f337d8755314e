"""Figures of a card: with their protocol, and never more than the result claims."""

from dataclasses import replace
from typing import Any

from magvit_scale.card.figures import figures_text, model_index
from magvit_scale.config import DecodingConfig
from magvit_scale.metrics.protocols import PROTOCOLS
from magvit_scale.metrics.results import Result, build_result

PROTOCOL = PROTOCOLS["magvit-ucf101-cg"]


def result_of(**changes: Any) -> Result:
    result = build_result(
        PROTOCOL, folds={"CG/FVD": [70.0, 80.0]}, weights={"feature_network": "random"}, models={},
        decoding=DecodingConfig(num_steps=5), seeds={"clips": 3}, data={"shards": "0f"}, device="cpu",
    )  # fmt: skip
    return replace(result, **changes)


def entry(metric: str) -> dict[str, Any]:
    return {
        "task": {"type": "video-to-video", "name": "CG"},
        "dataset": {"type": PROTOCOL.data_set, "name": PROTOCOL.data_set},
        "metrics": [{"type": metric, "value": 75.0, "name": f"CG/FVD by magvit-ucf101-cg {PROTOCOL.hash[:12]}"}],
    }


def test_untrained_features_are_named_and_no_board_can_take_them_for_fvd() -> None:
    results = (result_of(),)
    text = figures_text(results)
    assert f"sha256 `{PROTOCOL.hash}`. **Not comparable with any paper: feature_network untrained.**" in text
    assert "| CG/FVD | 75 | 5 |" in text
    assert '"num_steps": 5' in text
    assert results[0].machine["host"] not in text
    assert model_index("toy", results) == [{"name": "toy", "results": [entry("fvd_not_comparable")]}]


def test_a_comparable_result_says_so() -> None:
    results = (result_of(comparable=True, weights={"feature_network": "ab" * 32}),)
    assert "Comparable with figures that papers print" in figures_text(results)
    assert model_index("toy", results) == [{"name": "toy", "results": [entry("fvd")]}]


def test_a_result_that_does_not_compare_for_another_reason_says_that() -> None:
    text = figures_text((result_of(weights={"feature_network": "ab" * 32}),))
    assert "**Not comparable with any paper: the result says so.**" in text


def test_without_results_there_are_no_figures() -> None:
    assert figures_text(()) == "None were given."
    assert model_index("toy", ()) == []
