"""magvit compare-results: the table, the paper's figures, the refusals."""

from dataclasses import replace
from pathlib import Path

import pytest

from magvit_scale import compare_results
from magvit_scale.config import DecodingConfig, Refusal
from magvit_scale.metrics.protocols import PROTOCOLS
from magvit_scale.metrics.results import Result, build_result, write_result
from magvit_scale.weights import WEIGHTS, Weights


@pytest.fixture(autouse=True)
def _published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTS, "i3d-ts", Weights(file="f", url="u", sha256="aa", num_bytes=1, licence="l"))


def result_of(
    fvd: list[float], name: str = "magvit-bair-fp", weights: str = "aa", decoding: DecodingConfig | None = None
) -> Result:
    protocol = PROTOCOLS[name]
    return build_result(
        protocol,
        folds={f"{protocol.tasks[0]}/fvd": fvd},
        weights={"feature_network": weights},
        models={},
        decoding=decoding or protocol.decoding,
        seeds={},
        data={"shards": "0f"},
        device="cpu",
    )


def table(folder: Path, capsys: pytest.CaptureFixture[str], *results: Result) -> list[str]:
    paths = [folder / f"{name}.json" for name, _ in zip("ab", results, strict=False)]
    for path, result in zip(paths, results, strict=True):
        write_result(path, result)
    compare_results.main([str(path) for path in paths])
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_two_results_stand_beside_each_other_and_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = table(tmp_path, capsys, result_of([70, 72, 70, 72]), result_of([65, 65, 65, 65]))
    assert f"protocol magvit-bair-fp {PROTOCOLS['magvit-bair-fp'].hash[:12]}" == lines[0]
    assert f"FP/fvd 71 +- 1 {tmp_path / 'a.json'}" in lines
    assert f"FP/fvd 65 +- 0 {tmp_path / 'b.json'}" in lines
    assert "-6 difference" in lines
    assert "62 +- 0.1 MAGVIT-L (MAGVIT, arXiv 2212.05199, frame prediction on BAIR)" in lines
    assert not any("19.3" in line for line in lines)  # the paper's PSNR, which nobody measured here
    assert not any("decoding is not" in line for line in lines)


def test_another_copy_of_the_data_or_another_seed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = replace(result_of([70.0]), seeds={"clips": 0})
    theirs = replace(ours, data={"shards": "1a"}, seeds={"clips": 3})
    lines = table(tmp_path, capsys, ours, theirs)
    assert "the real clips are not the same (shards 0f and 1a): a difference may be theirs" in lines
    assert "the real clips are not the same (seed 0 and 3): a difference may be theirs" in lines
    assert not any("not the same" in line for line in table(tmp_path, capsys, ours, ours))


def test_one_result_stands_beside_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = table(tmp_path, capsys, result_of([30.5], "magvit-bair-fp-debiased"))
    assert any(line.startswith("FP/fvd 30.5 ") for line in lines)
    assert any(line.startswith("31 +- 0.2 MAGVIT-L") for line in lines)
    assert not any("difference" in line for line in lines)


def test_untrained_features_stand_beside_no_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = table(tmp_path, capsys, result_of([5.0], weights="random"), result_of([4.0], weights="random"))
    assert "-1 difference" in lines
    assert f"{tmp_path / 'b.json'}: NOT COMPARABLE with any paper: feature_network is untrained" in lines
    assert not any("MAGVIT-L" in line for line in lines)


def test_another_network_stands_beside_no_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = table(tmp_path, capsys, result_of([5.0], weights="bb"))
    expected = "feature_network has sha256 bb, expected aa (i3d-ts)"
    assert f"{tmp_path / 'a.json'}: NOT COMPARABLE with any paper: {expected}" in lines
    assert not any("MAGVIT-L" in line for line in lines)


def test_one_result_that_compares_with_nothing_keeps_the_paper_away_from_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = table(tmp_path, capsys, result_of([5.0]), replace(result_of([4.0]), comparable=False))
    assert f"{tmp_path / 'b.json'}: NOT COMPARABLE with any paper: the file says so" in lines
    assert not any("MAGVIT-L" in line for line in lines)


def test_a_sampler_of_ones_own_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = DecodingConfig(num_steps=24, choice_temperature=400.0, schedule="exp")
    lines = table(tmp_path, capsys, result_of([61.0], decoding=own))
    assert f"{tmp_path / 'a.json'}: decoding is not the paper's: num_steps 24 for 12" in lines


def test_a_protocol_that_this_version_does_not_know_has_no_published_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = table(tmp_path, capsys, replace(result_of([61.0]), protocol_hash="0123456789abcdef"))
    assert "this version has no protocol magvit-bair-fp 0123456789ab: no published figures" in lines
    assert not any("MAGVIT-L" in line for line in lines)


def test_unlike_protocols_and_three_results_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Refusal, match=r"results of unlike protocols: magvit-bair-fp .* and magvit-bair-fp-debiased"):
        table(tmp_path, capsys, result_of([1.0]), result_of([1.0], "magvit-bair-fp-debiased"))
    with pytest.raises(Refusal, match="3 results, expected one or two"):
        compare_results.main(["a.json", "b.json", "c.json"])
    with pytest.raises(Refusal, match="no value for ours"):
        compare_results.main([])
