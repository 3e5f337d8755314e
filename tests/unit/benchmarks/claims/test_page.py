import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims import page
from benchmarks.claims.page import NAMES, SECTIONS, replace_part
from magvit_scale.config import Refusal

TASKS = ("FP", "CG")
SEEDS = (0, 1, 2)


def entropies(value: float) -> dict[str, Any]:
    return {masks: dict.fromkeys(TASKS, value) for masks in ("all", "trained")}


def clips(value: float) -> dict[str, Any]:
    return {"FP": {"frechet": value, "psnr": value, "psnr_moving": value}, "CG": {"frechet": value}}


def asked(value: float, seed: int) -> dict[str, Any]:
    own = value + seed / 100
    found = {"cross_entropy": entropies(own), "generated": clips(own)}
    return found | {f"{name}_of_clip": figures for name, figures in found.items()}


def point(settings: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    return {"settings": settings, "figures": figures, "cpu_s": 60.0}


def baselines() -> dict[str, Any]:
    figures = {"cross_entropy": entropies(9), "canvas": clips(8) | {"CG": {}}, "reconstruction": clips(7)}
    figures["tokens_kept"] = {"FP": 0.256}
    return point({"asked": list(TASKS)}, figures)


def transformers(values: dict[str, float]) -> dict[str, Any]:
    points = {
        f"{variant}_{seed}": point({"variant": variant, "seed": seed}, asked(value, seed))
        for variant, value in values.items()
        for seed in SEEDS
    }
    return {"baselines": baselines(), **points}


def decodings() -> dict[str, Any]:
    points = {
        f"steps{steps}_{seed}": point(
            {"steps": steps, "seed": seed}, {"generated": clips(1 / steps), "cpu_ms_per_clip": 10 + 2.5 * steps}
        )
        for steps in (1, 12)
        for seed in SEEDS
    }
    return {"baselines": baselines(), **points}


def inflations() -> dict[str, Any]:
    points = {
        f"{mode}_{seed}": point(
            {"mode": mode, "rate": 5e-4, "seed": seed},
            {
                "by_step": {
                    str(step): {"psnr": 20 + gain, "psnr_moving": 14 + gain * step / 50} for step in (0, 50, 100)
                }
            },
        )
        for mode, gain in {"central": 2.0, "none": 0.2}.items()
        for seed in SEEDS
    }
    return {"mean_image": point({}, {"psnr_moving": 15.0}), **points}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("claims")
    write_results(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RESULTS": folder, "PAGE": folder / "claims.md", "PLOTS": folder / "claims"}.items():
            patch.setattr(page, name, value)
        page.main()
        yield folder


def write_results(folder: Path) -> None:
    found = {
        "inflation": inflations(),
        "conditioning": transformers({"commit": 4.0, "latent": 5.0, "prefix": 4.001}),
        "losses": transformers({"commit": 4.0, "mask": 3.0}),
        "tasks": transformers({"commit": 4.0, "only_FP": 5.0}),
        "decoding": decodings(),
    }
    for name, figures in found.items():
        results = {
            "command": f"run {name}",
            "machine": {"cores": 2, "load": [1]},
            "note": "torch 2",
            "figures": figures,
        }
        (folder / f"{name}.json").write_text(json.dumps(results))
    marks = [f"<!-- {name} -->\nold\n<!-- /{name} -->" for name in (*SECTIONS, "total")]
    (folder / "claims.md").write_text("\n".join(["Words.", *marks]))


def rows(written: Path, name: str) -> dict[str, list[str]]:
    part = (written / "claims.md").read_text().split(f"<!-- {name} -->")[1].split("<!-- /")[0]
    lines = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


def test_every_figure_has_its_spread_and_its_verdict(written: Path) -> None:
    found = rows(written, "conditioning")
    assert found[NAMES["commit"]][0] == "4.010 (0.010)"
    assert found[NAMES["latent"]][0] == "5.010 (0.010) worse"
    assert found[NAMES["latent"]][-1] == "5.01 (0.01) better"  # PSNR
    assert found[NAMES["prefix"]][0] == "4.011 (0.010) same"
    assert found["*token frequencies per position*"][0] == "9.000"
    assert rows(written, "losses")[NAMES["mask"]][0] == "3.010 (0.010) better"
    assert rows(written, "tasks")[NAMES["only_FP"]][0] == "5.0100 (0.0100) worse"


def test_how_many_of_the_conditions_tokens_survive(written: Path) -> None:
    assert "in the task's canvas and in the true clip: FP 26%." in (written / "claims.md").read_text()


def test_steps_until_the_mean_image_and_what_never_gets_there(written: Path) -> None:
    found = rows(written, "inflation")
    assert found["central"][:3] == ["50 (0)", "14.00 (0.00)", "16.00 (0.00)"]
    assert found["none"][0] == "not reached by 3 of 3"


def test_a_decoding_step_has_its_price(written: Path) -> None:
    assert list(rows(written, "decoding"))[2:4] == ["12 steps", "1 step"]
    assert "*token frequencies per position*" not in rows(written, "decoding")
    assert (
        "A step costs 2.50 CPU ms per clip; tokenizing the condition and detokenizing, 10.0 ms."
        in (written / "claims.md").read_text()
    )


def test_points_that_claims_share_cost_once(written: Path) -> None:
    # 7 of inflation, 10 + 3 + 3 transformers, 6 of decoding; a minute each.
    assert "29 points, 29 CPU minutes" in (written / "claims.md").read_text()


def test_the_same_figures_give_the_same_page_and_plots(written: Path) -> None:
    before = {path.name: path.read_bytes() for path in written.rglob("*") if path.is_file()}
    assert {f"{name}.svg" for name in SECTIONS} <= set(before)
    page.main()
    assert before == {path.name: path.read_bytes() for path in written.rglob("*") if path.is_file()}


def test_only_what_stands_between_the_marks_is_written_anew() -> None:
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb"
    assert replace_part(text, "x", ["new"]) == "a\n<!-- x -->\nnew\n<!-- /x -->\nb"
    with pytest.raises(Refusal, match="no part from <!-- y -->"):
        replace_part(text, "y", ["new"])
