"""Pages from small RUN folders: what is on them, what is refused, and what a failed gate does."""

import json
import shutil
from pathlib import Path

import pytest

from magvit_scale.config import TASKS, Refusal
from magvit_scale.page.words import CURVE_WORDS, GROUP_WORDS
from magvit_scale.report import main
from tests.outline import outline
from tests.toy_record import (
    GATES,
    full_results,
    text_of,
    write_evaluation,
    write_judgement,
    write_root,
    write_run,
    write_samples,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path / "first")


def test_a_page_is_whole_self_contained_and_repeatable(root: Path) -> None:
    before = set(root.rglob("*"))
    main([str(root)])
    page = root / "report.html"
    first, found = page.read_bytes(), outline(page)
    for heading in (
        "Does it learn?",
        "Reconstruction",
        "Central outpainting",
        "Decoding, step by step",
        "Codebook",
        "Figures",
    ):
        assert heading in found.headings
    assert found.images == 2 * (2 + 2 * len(TASKS) + 4)  # reconstructions, tasks, decoding steps; each moves and stands
    assert all(source.startswith(("data:image/webp;base64,", "#")) for source in found.sources)
    assert b"<script" not in first
    assert b"@import" not in first
    assert set(root.rglob("*")) - before == {page}
    main([f"runs=[{root}]"])
    assert page.read_bytes() == first


def test_a_page_names_what_is_random_and_escapes_names(root: Path) -> None:
    assert 'role="note"' not in text_of(root)
    write_evaluation(root, "bair", [5.0], weights="random")
    write_run(root / "vqgan", [], "loss: {perceptual: random}\n")
    text = text_of(root)
    note = text[text.index('role="note"') :].split("</div>")[0]
    assert "<p>NOT COMPARABLE with any paper: feature_network is untrained</p>" in note
    assert "<p>The perceptual loss of the training was that of an untrained, random network.</p>" in note
    assert "spin &amp; go" in text
    assert "<td>n/a</td>" in text  # a score that does not exist
    assert "+0.250" in text
    assert '<span class="failed">-0.125</span>' in text
    assert f"magvit train-commit {root}/commit/config.yaml" in text
    assert f"magvit report {root}</pre>" in text


def test_passed_gates_are_printed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(root)])
    page, gate = capsys.readouterr().out.splitlines()
    assert page.startswith(f"page: {root}/report.html (0.")
    assert gate == "gate a passed: moving pixels: 18.00 against 14.00 dB"


def test_a_failed_gate_ends_the_program_after_the_page(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_judgement(root / "judgement", full_results(GATES))
    with pytest.raises(SystemExit) as stop:
        main([str(root)])
    page = root / "report.html"
    assert stop.value.code == f"report: 1 of 2 gates failed: d (class <only>); see {page}"
    assert "class &lt;only&gt;" in page.read_text()
    main([str(root), "gate=warn"])
    assert "warning: report: 1 of 2 gates failed" in capsys.readouterr().err


def test_parts_that_are_missing_are_left_out(root: Path) -> None:
    write_samples(root / "generated", **{"trajectory/FP/clips": None, "trajectory/FP/fixed": None})
    results = full_results(GATES[:1])
    write_judgement(root / "judgement", {key: results[key] for key in ("protocol", "reconstruction", "gates")})
    main([str(root)])
    absent = {"Decoding, step by step", "Codebook", "Masked-token cross-entropy"}
    assert not absent & set(outline(root / "report.html").headings)
    shutil.rmtree(root / "judgement")
    shutil.rmtree(root / "commit")
    main([str(root)])
    assert {"Does it learn?", "Training", "Figures"} & set(outline(root / "report.html").headings) == set()
    assert "Frame prediction" in outline(root / "report.html").headings


def test_a_training_run_alone_has_curves_configuration_and_environment(root: Path) -> None:
    (root / "commit" / "env.json").write_text('{"torch": "2.15.0"}')
    main([f"{root}/commit"])
    found = outline(root / "commit" / "report.html")
    assert found.headings == ["Training", "commit", "Reproduce", "Environment"]
    assert found.images == 0
    text = (root / "commit" / "report.html").read_text()
    assert "<h1>commit</h1>" in text
    assert "2.15.0" in text
    assert "Pause" not in text


def test_training_runs_stand_in_the_order_in_which_they_were_started(root: Path) -> None:
    for name, time in (("zero", 3.0), ("aaa", 9.0), ("other", 6.0)):
        write_run(root / name, [json.dumps({"step": 1, "time": time, "loss/mask": 1.0})])
    headings = outline_of(root)
    assert [name for name in headings if name in ("zero", "aaa", "other")] == ["zero", "other", "aaa"]


def outline_of(root: Path) -> list[str]:
    main([str(root)])
    return outline(root / "report.html").headings


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("first/judgement/reconstructions.npz", "reconstructions.npz: not there"),
        ("first", "first: not there; expected the folder of a training run"),
    ],
)
def test_missing_inputs_are_refused(root: Path, tmp_path: Path, missing: str, message: str) -> None:
    shutil.rmtree(tmp_path / missing) if missing == "first" else (tmp_path / missing).unlink()
    with pytest.raises(Refusal, match=message) as refusal:
        main([str(root)])
    assert "\n" not in str(refusal.value)
    assert not (root / "report.html").exists()


def test_a_folder_with_nothing_to_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"expected the folder of a training run \(it has metrics.jsonl\) or one around"):
        main([str(tmp_path)])
    with pytest.raises(Refusal, match="no value for runs"):
        main([])


def test_damaged_results_are_refused(root: Path) -> None:
    for text, message in (('{"gates": [', r"results\.json: not JSON"), ("{}", "no gates, protocol, reconstruction")):
        (root / "judgement" / "results.json").write_text(text)
        with pytest.raises(Refusal, match=message):
            main([str(root)])
    (root / "generated" / "samples.npz").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(Refusal, match=r"samples\.npz: not a readable npz"):
        main([str(root)])


def test_curves_are_explained_and_in_the_order_of_the_words(root: Path) -> None:
    values = {"perf/step_s": 0.5, "gan/accuracy": 0.75, "codebook/usage_window": 0.5, "loss/r1": 0.25, "new/thing": 1.0}
    write_run(root / "commit", [json.dumps({"step": step} | values) for step in (1, 2)], "tokens: elsewhere\n")
    text = text_of(root)
    groups = [text.index(f"<h4>{group}</h4>") for group in ("loss", "codebook", "gan", "perf", "new")]
    assert groups == sorted(groups)
    for key in set(values) - {"new/thing"}:
        assert f"<span>{CURVE_WORDS[key]}" in text, key
    assert {key.split("/")[0] for key in CURVE_WORDS} <= GROUP_WORDS.keys()


def test_one_page_goes_where_it_is_asked_for(root: Path, tmp_path: Path) -> None:
    main([str(root), f"output={tmp_path / 'elsewhere' / 'page.html'}"])
    assert (tmp_path / "elsewhere" / "page.html").is_file()
    assert not (root / "report.html").exists()


def test_of_a_watchers_results_the_newest_is_shown(root: Path) -> None:
    for step, fvd in ((100, 80.5), (1200, 60.25)):
        folder = root / "commit" / "evaluation" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        write_evaluation(folder, "bair", [fvd])
        (folder / "evaluation" / "bair.json").rename(folder / "bair.json")
    text = text_of(root)
    assert "bair, step_00001200" in text
    assert "60.25" in text
    assert "80.50" not in text
