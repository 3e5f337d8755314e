"""The page from small inputs: what is on it, what is refused, and what a failed gate does."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from magvit_scale.config import TASKS, Refusal
from magvit_scale.page.inputs import read_run
from magvit_scale.page.pictures import animated_webp, enlargement, latent_grid, strips
from magvit_scale.page.plots import curve, smoothed, sorted_bars
from magvit_scale.page.sections import _spread
from magvit_scale.page.tables import number
from magvit_scale.page.words import CURVE_WORDS, GROUP_WORDS
from magvit_scale.report import main

RANDOM = np.random.default_rng(0)
GATES = [
    {
        "id": "a",
        "claim": "moving pixels",
        "value": 18.0,
        "baseline": 14.0,
        "unit": "dB",
        "higher_is_better": True,
        "passed": True,
    },
    {
        "id": "d",
        "claim": "class <only>",
        "value": 3.6,
        "baseline": 3.5,
        "unit": "nats",
        "higher_is_better": False,
        "passed": False,
    },
]


def clips(count: int, frames: int = 3, size: int = 8) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, frames, size, size, 3), dtype=np.uint8)


def write_samples(folder: Path, **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {"classes": np.array(["fall", "spin & go"]), "fps": np.int64(8)}
    for task in TASKS:
        arrays |= {f"{task}/{part}": clips(2) for part in ("condition", "generated", "real")}
        arrays[f"{task}/label"] = np.array([1, 0])
    arrays |= {"trajectory/FP/clips": clips(4), "trajectory/FP/fixed": np.ones((4, 2, 2, 2), bool)}
    arrays = {key: value for key, value in (arrays | changes).items() if value is not None}
    np.savez(folder / "samples.npz", **arrays)


def write_judgement(folder: Path, results: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    panels = {name: clips(2) for name in ("original", "reconstruction", "inflated")}
    np.savez(folder / "reconstructions.npz", label=np.array([0, 1]), classes=np.array(["fall", "spin & go"]), **panels)
    (folder / "results.json").write_text(json.dumps(results))


def full_results(gates: list[dict[str, Any]]) -> dict[str, Any]:
    scores = {"psnr": 22.5, "psnr_moving": float("nan"), "psnr_static": 24.25, "ssim": 0.8125}
    return {
        "protocol": {"id": "demo-heldout-v1", "features": "random", "perceptual": "none", "clips": 2},
        "not_comparable": "Tiny models.",
        "models": {"tokenizer": "abc"},
        "reconstruction": {"trained": scores, "mean_image": scores},
        "codebook": {"used": 0.75, "perplexity": 2.5, "counts": [5, 0, 1, 2]},
        "cross_entropy": {task: {"commit": 3.25, "per_position": 3.5, "unigram": 4.75} for task in TASKS},
        "class_conditional": {"commit": 3.625, "per_position": 3.5},
        "frechet": {"FP": 0.5},
        "gates": gates,
    }


def write_run(folder: Path, lines: list[str], config: str = "run: {}\n") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    (folder / "config.yaml").write_text(config)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Inputs of a whole page under `tmp_path`, and the command line that reads them."""
    lines = [json.dumps({"step": step, "time": 0.0, "loss/mask": 3.0 / (step + 1)}) for step in range(40)]
    write_run(tmp_path / "commit", lines, "tokens: elsewhere\n")
    write_samples(tmp_path / "generated")
    write_judgement(tmp_path / "judgement", full_results(GATES[:1]))
    folders = {"generated": "generated", "judgement": "judgement", "output": "page/report.html"}
    return [f"runs=[{tmp_path}/commit]", *(f"{key}={tmp_path}/{value}" for key, value in folders.items())]


class Outline(HTMLParser):
    """Collects headings and everything a page would fetch; fails on unbalanced elements."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.sources: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [str(value) for key, value in attrs if key in ("src", "href", "xlink:href", "srcset")]
        self.images += tag == "img"
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [str(value) for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data.strip())


def outline(path: Path) -> Outline:
    parser = Outline()
    parser.feed(path.read_text())
    assert parser.open == []
    return parser


def test_page_is_whole_self_contained_and_repeatable(arguments: list[str], tmp_path: Path) -> None:
    main(arguments)
    page = tmp_path / "page" / "report.html"
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
    assert found.images == 2 + 2 * len(TASKS) + 4  # reconstructions, tasks, decoding steps
    assert all(source.startswith(("data:image/webp;base64,", "#")) for source in found.sources)
    assert b"<script" not in first
    assert b"@import" not in first
    assert list(page.parent.iterdir()) == [page]
    main(arguments)
    assert page.read_bytes() == first


def test_page_names_what_is_random_and_escapes_names(arguments: list[str], tmp_path: Path) -> None:
    main(arguments)
    text = (tmp_path / "page" / "report.html").read_text()
    assert "The features of the Fréchet distance come from an untrained, random network. Tiny models." in text
    assert "the perceptual loss come" not in text
    assert "spin &amp; go" in text
    assert "<td>n/a</td>" in text  # a score that does not exist
    assert "+0.250" in text
    assert '<span class="failed">-0.125</span>' in text
    assert f"magvit train-commit {tmp_path}/commit/config.yaml" in text


def test_passed_gates_are_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments)
    assert capsys.readouterr().out == "gate a passed: moving pixels: 18.00 against 14.00 dB\n"


def test_a_failed_gate_ends_the_program_after_the_page(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_judgement(tmp_path / "judgement", full_results(GATES))
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    page = tmp_path / "page" / "report.html"
    assert stop.value.code == f"report: 1 of 2 gates failed: d (class <only>); see {page}"
    assert "class &lt;only&gt;" in page.read_text()
    main([*arguments, "gate=warn"])
    assert "warning: report: 1 of 2 gates failed" in capsys.readouterr().err


def test_optional_parts_are_absent(arguments: list[str], tmp_path: Path) -> None:
    write_samples(tmp_path / "generated", **{"trajectory/FP/clips": None, "trajectory/FP/fixed": None})
    results = full_results(GATES[:1])
    write_judgement(tmp_path / "judgement", {key: results[key] for key in ("protocol", "reconstruction", "gates")})
    main(arguments)
    found = outline(tmp_path / "page" / "report.html")
    assert not {"Decoding, step by step", "Codebook", "Fréchet distance", "Masked-token cross-entropy"} & set(
        found.headings
    )


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("generated/samples.npz", "samples.npz: not there; run `magvit generate` first"),
        ("judgement/results.json", "results.json: not there; run `magvit judge` first"),
        ("judgement/reconstructions.npz", "reconstructions.npz: not there"),
        ("commit/metrics.jsonl", "metrics.jsonl: not there; run the training stage first"),
        ("commit/config.yaml", "config.yaml: not there"),
    ],
)
def test_missing_inputs_are_refused(arguments: list[str], tmp_path: Path, missing: str, message: str) -> None:
    (tmp_path / missing).unlink()
    with pytest.raises(Refusal, match=message) as refusal:
        main(arguments)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"FP/real": clips(1)}, "condition, generated and real of FP have shapes"),
        ({"FP/real": clips(2).astype(np.float32)}, r"FP/real is float32 \(2, 3, 8, 8, 3\), expected uint8"),
        ({"FP/condition": None}, "FP/condition is missing"),
        ({"FP/label": np.array([0, 2])}, "FP/label is missing or not below the number of classes, 2"),
        ({"trajectory/FP/fixed": np.ones((3, 2, 2, 2), bool)}, "not one `t h w` grid per step"),
        ({"classes": None}, "no array classes"),
        ({"classes": np.array(["a", None], dtype=object)}, "not a readable npz"),
    ],
)
def test_wrong_samples_are_refused(arguments: list[str], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_samples(tmp_path / "generated", **changes)
    with pytest.raises(Refusal, match=message):
        main(arguments)


def test_damaged_results_are_refused(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "judgement" / "results.json").write_text('{"gates": [')
    with pytest.raises(Refusal, match=r"results\.json: not JSON"):
        main(arguments)
    (tmp_path / "judgement" / "results.json").write_text("{}")
    with pytest.raises(Refusal, match="no gates, protocol, reconstruction"):
        main(arguments)
    (tmp_path / "generated" / "samples.npz").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(Refusal, match=r"samples\.npz: not a readable npz"):
        main(arguments)


def test_resumed_run_keeps_the_last_value_of_a_step_and_survives_half_a_line(tmp_path: Path) -> None:
    records = [{"step": 2, "loss/mask": 2.0}, {"step": 1, "loss/mask": 9.0}, {"step": 2, "loss/mask": 1.0, "time": 5}]
    write_run(tmp_path / "run", [*map(json.dumps, records), '{"step": 3, "loss'])
    assert read_run(tmp_path / "run").curves == {"loss/mask": ([1, 2], [9.0, 1.0])}
    write_run(tmp_path / "run", ["{torn", '{"step": 3}'])
    with pytest.raises(Refusal, match=r"metrics\.jsonl, line 1: not a JSON object with a step"):
        read_run(tmp_path / "run")


def test_curves_are_explained_and_in_the_order_of_the_words(arguments: list[str], tmp_path: Path) -> None:
    values = {"perf/step_s": 0.5, "gan/accuracy": 0.75, "codebook/usage_window": 0.5, "loss/r1": 0.25, "new/thing": 1.0}
    write_run(tmp_path / "commit", [json.dumps({"step": step} | values) for step in (1, 2)], "tokens: elsewhere\n")
    main(arguments)
    text = (tmp_path / "page" / "report.html").read_text()
    groups = [text.index(f"<h4>{group}</h4>") for group in ("loss", "codebook", "gan", "perf", "new")]
    assert groups == sorted(groups)
    for key in set(values) - {"new/thing"}:
        assert f"<span>{CURVE_WORDS[key]}" in text, key
    assert {key.split("/")[0] for key in CURVE_WORDS} <= GROUP_WORDS.keys()


def test_samples_are_left_out_to_keep_the_page_small() -> None:
    panels, names = {"real": clips(6)}, [f"class {index}" for index in range(6)]
    assert strips(panels, names, 8, max_bytes=10**6).count("<img") == 6
    assert "<summary>2 more</summary>" in strips(panels, names, 8, max_bytes=10**6)
    assert strips(panels, names, 8, max_bytes=0).count("<img") == 2


def test_latent_grid_draws_one_frame_each_and_joins_runs() -> None:
    fixed = np.zeros((2, 2, 4), bool)
    fixed[0, 1, 1:3] = True
    fixed[1, 0, [0, 3]] = True
    assert re.findall(r' d="([^"]*)"', latent_grid(fixed)) == ["M1 1h2v1h-2z", "M0 0h1v1h-1zM3 0h1v1h-1z"]


def test_small_numbers() -> None:
    assert [number(value) for value in (None, float("nan"), 0, 0.25, 12.345, 123.45, 12345.6, 2e-5)] == [
        *("n/a", "n/a", "0.000", "0.250", "12.35", "123.5", "12 346", "2.00e-05"),
    ]
    assert [enlargement(size) for size in (8, 32, 48, 64, 128, 256)] == [16, 4, 3, 2, 1, 1]
    assert _spread(12, 4) == [0, 4, 7, 11]
    assert _spread(3, 9) == [0, 1, 2]


def test_plots_are_inline_svg_in_the_pages_colours() -> None:
    for svg in (
        curve(range(100), [10.0 ** -(step / 20) for step in range(100)]),
        curve([1], [float("nan")]),
        sorted_bars([3, 0, 9]),
    ):
        assert svg.startswith("<svg")
        assert "<style" not in svg
        assert "currentColor" in svg
    np.testing.assert_allclose(smoothed(np.full(90, 2.0)), 2.0)
    np.testing.assert_allclose(smoothed(np.arange(90.0))[10:80], np.arange(10.0, 80.0))


def test_moving_pictures_loop_without_loss() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 8, 6, 3), np.uint8)
    with Image.open(io.BytesIO(animated_webp(frames, 8))) as movie:
        assert (movie.size, movie.n_frames, movie.info["loop"]) == ((6, 8), 5, 0)
        assert np.array_equal(np.asarray(movie.convert("RGB")), frames[0])
