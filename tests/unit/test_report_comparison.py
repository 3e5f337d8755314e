"""Results by protocol on a page, and the page that sets runs side by side."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from magvit_scale.config import TASKS
from magvit_scale.metrics.protocols import PROTOCOLS
from magvit_scale.report import main
from magvit_scale.weights import WEIGHTS, Weights
from tests.outline import outline
from tests.toy_record import (
    GATES,
    clips,
    full_results,
    text_of,
    write_evaluation,
    write_judgement,
    write_root,
    write_run,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path / "first")


@pytest.fixture
def _published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTS, "i3d-ts", Weights(file="f", url="u", sha256="aa", num_bytes=1, licence="l"))


@pytest.mark.usefixtures("_published_weights")
def test_figures_by_protocol_stand_beside_the_papers_where_they_compare(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(root, "bair", [70, 72, 70, 72])
    (root / "evaluation" / "notes.json").write_text("{}")
    text = text_of(root)
    assert f"left out: {root}/evaluation/notes.json: " in capsys.readouterr().err
    assert f'<abbr class="code">{PROTOCOLS["magvit-bair-fp"].hash[:12]}</abbr>' in text
    assert "<td>71.00 ± 1.000</td><td>62.00 ± 0.100</td><td>76.00 ± 0.100</td><td>84.00</td>" in text
    assert "MAGVIT-L <sup>1</sup>" in text
    assert "0.787" not in text  # the paper's SSIM, which nobody measured here
    assert "Each of the 256 clips is the condition of 100 samples" in text


@pytest.mark.usefixtures("_published_weights")
def test_figures_that_do_not_compare_stand_alone_with_the_reason(root: Path) -> None:
    write_evaluation(root, "bair", [5.0], weights="random")
    text = text_of(root)
    assert "<strong>bair</strong>: NOT COMPARABLE with any paper: feature_network is untrained" in text
    assert "<td>5.000</td></tr>" in text
    assert "MAGVIT-L" not in text


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Another root with the same held-out clips."""
    shutil.copytree(write_root(tmp_path / "first"), tmp_path / "second")
    results = full_results(GATES)
    results["cross_entropy"]["FP"]["commit"] = 3.125
    write_judgement(tmp_path / "second" / "judgement", results)
    return tmp_path / "second"


def comparison_of(*roots: Path) -> str:
    main([*map(str, roots), "gate=warn"])
    outline(roots[0].parent / "comparison.html")
    return (roots[0].parent / "comparison.html").read_text()


def test_two_runs_stand_side_by_side(second: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = second.parent / "first"
    lines = [json.dumps({"step": step, "loss/mask": 2.0, "loss/new": 1.0}) for step in (1, 2)]
    write_run(second / "commit", lines, "tokens: elsewhere\nmodel: {num_layers: 6}\n")
    text = comparison_of(first, second)
    assert f"page: {second.parent}/comparison.html (0." in capsys.readouterr().out
    assert "<td>3.250</td><td><b>3.125</b></td>" in text  # cross-entropy, lower is better
    assert '<td>n/a</td><td>3.600<small class="failed">failed</small><small>against 3.500 nats</small></td>' in text
    assert '<a href="first/report.html">first</a>' in text
    heads = "".join(f"<span>{head}</span>" for head in ("condition", "first", "second", "real"))
    assert text.count(heads) == 2 * (len(TASKS) - 1)  # of class-conditional generation there is no condition
    legend, curves = text.split('<ul class="legend">')[1].split("</ul>")
    assert [label in legend for label in ("first", "second")] == [True, True]
    shared, only_second = curves.split("<b>mask</b>")[1], curves.split("<b>new</b>")[1]
    assert ["var(--run-1)" in shared.split("<b>")[0], "var(--run-2)" in shared] == [True, True]
    assert ["var(--run-1)" in only_second.split("</details>")[0], "var(--run-2)" in only_second] == [False, True]
    assert "model.num_layers</th><td>not there</td><td>6</td>" in text
    assert '<th scope="row">tokens</th>' not in text


def test_figures_of_unlike_judgements_and_samples_of_other_clips_stand_apart(second: Path) -> None:
    results = full_results(GATES[:1])
    results["protocol"] |= {"clips": 3}
    write_judgement(second / "judgement", results)
    with np.load(second / "generated" / "samples.npz") as archive:
        np.savez(second / "generated" / "samples.npz", **{**archive, "FP/real": clips(2)})
    text = comparison_of(second.parent / "first", second)
    assert "Apart from the above: they were taken with another clips." in text
    assert "<td><b>0.500" not in text
    assert text.count("<span>first</span><span>second</span>") == 2 * (len(TASKS) - 1)
    assert text.count("<span>condition</span><span>second</span><span>real</span>") == 2


@pytest.mark.usefixtures("_published_weights")
def test_only_results_of_one_protocol_and_the_same_weights_share_a_row(second: Path) -> None:
    first = second.parent / "first"
    write_evaluation(first, "bair", [70.0])
    write_evaluation(second, "bair", [65.0])
    assert "<td>70.00</td><td>65.00</td><td>62.00 ± 0.100</td>" in comparison_of(first, second)
    write_evaluation(second, "bair", [65.0], weights="random")
    text = comparison_of(first, second)
    assert "<td>70.00</td><td>62.00 ± 0.100</td>" in text
    assert "<td>65.00</td></tr>" in text
    assert "Apart from the above: results by unlike weights of feature_network: aa and random" in text
    write_evaluation(second, "bair", [65.0], protocol_hash="0123456789abcdef")
    assert "Apart from the above: results of unlike protocols: magvit-bair-fp" in comparison_of(first, second)


def test_runs_of_one_name_are_told_apart_and_the_page_goes_where_it_is_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name / "commit", ['{"step": 1, "loss/mask": 1.0}'], "tokens: x\n")
    main([f"{tmp_path}/a/commit", f"{tmp_path}/b/commit", f"output={tmp_path}/pages/both.html"])
    text = (tmp_path / "pages" / "both.html").read_text()
    assert '<a href="../a/commit/report.html">a/commit</a>, <a href="../b/commit/report.html">b/commit</a>' in text
    assert not (tmp_path / "a" / "comparison.html").exists()
