"""magvit evaluate: every clip once, on any number of ranks; the figures of an independent computation; refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from magvit_scale import evaluate
from magvit_scale.config import Refusal, dump
from magvit_scale.data.shards import load_dataset
from magvit_scale.metrics.frechet import RandomFeatures
from magvit_scale.metrics.protocol import InceptionScoreRule, Protocol, RealClips
from magvit_scale.metrics.results import read_result
from magvit_scale.metrics.selection import select_clips
from magvit_scale.vqgan.autoencoder import VQGAN
from tests.integration.conftest import Road
from tests.integration.nursery import Nursery

TOY = Protocol(
    name="toy",
    data_set="moving shapes",
    tasks=("reconstruction", "FP", "CG"),
    real=RealClips(split="train", rule="even_windows", num_clips=5, windows=2),
    num_generated=5,
    num_folds=2,
    num_frames=8,
    size_px=32,
    data_resize=(),
    feature_resize=(),
    quantiser="float",
    feature_network="random",
    divisor="n-1",
    inception_score=InceptionScoreRule(num_samples=5, num_splits=1, num_repeats=2),
)
SCORED = ("frechet_random", "inception_score_random", "psnr", "ssim", "lpips_random")
NAMES = {
    *(f"reconstruction/{name}" for name in (*SCORED, "codebook_used", "codebook_perplexity")),
    *(f"FP/{name}" for name in SCORED),
    *(f"CG/{name}" for name in SCORED[:2]),
}


def arguments(road: Road, folder: Path, rules: Protocol = TOY, **more: Any) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    dump(rules, folder / "protocol.yaml")
    given = {
        "protocol": folder / "protocol.yaml",
        "tokenizer": road.run_3d / "export",
        "transformer": road.run_commit / "export",
        "shards": road.shards,
        "output": folder / "out",
        "decoding.num_steps": 2,
        "num_workers": 0,
    }
    return [f"{key}={value}" for key, value in (given | more).items()]


@pytest.fixture(scope="module")
def alone(road: Road, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation by one process."""
    folder = tmp_path_factory.mktemp("alone")
    evaluate.main(arguments(road, folder, batch_size=3))
    return folder


def figures(folder: Path) -> dict[str, tuple[float, ...]]:
    return {name: figure.folds for name, figure in read_result(folder / "out" / "toy.json").figures.items()}


def test_a_result_holds_all_figures_and_what_they_hang_on(road: Road, alone: Path) -> None:
    result = read_result(alone / "out" / "toy.json")
    assert set(result.figures) == NAMES
    assert (result.protocol, result.protocol_hash, result.comparable) == ("toy", TOY.hash, False)
    assert result.weights == dict.fromkeys(("feature_network", "classifier", "perceptual"), "random")
    assert set(result.models) == {"tokenizer", "transformer"}
    learnt = json.loads((road.run_commit / "export" / "config.json").read_text())["tokenizer_hash"]
    assert result.models["tokenizer"] == learnt
    assert result.decoding["num_steps"] == 2
    assert result.data["shards"] == load_dataset(road.shards).hash
    assert all(len(result.figures[f"FP/{name}"].folds) == 2 for name in SCORED)


def test_reconstructions_have_the_figures_of_an_independent_computation(road: Road, alone: Path) -> None:
    samples = sorted(load_dataset(road.shards).samples("train"), key=lambda sample: sample.key)
    chosen = select_clips(TOY, [sample.num_frames for sample in samples])
    videos = load_dataset(road.shards)
    frames = [videos.read_video(samples[clip.video], clip.first_frame, clip.first_frame + 8) for clip in chosen]
    real = torch.from_numpy(np.stack(frames)).permute(0, 4, 1, 2, 3).float() / 255
    tokenizer = VQGAN.from_pretrained(road.run_3d / "export")
    with torch.no_grad():
        made = tokenizer.detokenize(tokenizer.tokenize(real))
        pair = [RandomFeatures()(clips).double().numpy() for clips in (real, made)]
    errors = (real - made).double().square().mean(dim=(1, 3, 4))
    decibels = (-10 * errors.log10()).mean(1)
    found = figures(alone)
    for fold in range(2):
        part = slice(5 * fold, 5 * fold + 5)
        assert found["reconstruction/psnr"][fold] == pytest.approx(decibels[part].mean().item(), rel=1e-6)
        means, covariances = zip(*((features[part].mean(0), np.cov(features[part].T)) for features in pair),
                                 strict=True)  # fmt: skip
        root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
        distance = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
        assert found["reconstruction/frechet_random"][fold] == pytest.approx(distance, rel=1e-3)


@pytest.mark.distributed
@pytest.mark.parametrize(("num_ranks", "batch_size"), [(2, 2), (3, 16)])
def test_ranks_and_batches_change_no_figure(
    road: Road, alone: Path, nursery: Nursery, tmp_path: Path, num_ranks: int, batch_size: int
) -> None:
    """Ten clips on three ranks: an uneven end, where others repeat clips or drop them."""
    nursery.succeed(["evaluate", *arguments(road, tmp_path, batch_size=batch_size)], num_ranks)
    found, expected = figures(tmp_path), figures(alone)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=2e-5, abs=1e-9), name


def test_statistics_of_the_real_set_are_computed_once(road: Road, alone: Path, tmp_path: Path) -> None:
    again = arguments(road, tmp_path, tasks="[reconstruction]", statistics=alone / "out" / "real")
    kept = sorted((alone / "out" / "real").iterdir())
    assert len(kept) == 2
    evaluate.main(again)
    assert figures(tmp_path)["reconstruction/psnr"] == pytest.approx(figures(alone)["reconstruction/psnr"], rel=1e-6)
    assert sorted((alone / "out" / "real").iterdir()) == kept
    # They are what is compared with, and nothing is computed in their place.
    shutil.copytree(alone / "out" / "real", tmp_path / "real")
    with np.load(tmp_path / "real" / kept[0].name) as arrays:
        moved = dict(arrays) | {"mean": arrays["mean"] + 3}
    np.savez(tmp_path / "real" / kept[0].name, **moved)
    evaluate.main([*again, f"statistics={tmp_path / 'real'}"])
    assert max(figures(tmp_path)["reconstruction/frechet_random"]) > 300
    # Another seed is another real set, under another name.
    evaluate.main([*again, f"statistics={tmp_path / 'real'}", "seed=1"])
    assert len(list((tmp_path / "real").iterdir())) == 4


def test_an_interrupted_evaluation_goes_on_with_the_task_that_it_was_at(
    road: Road, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(evaluation: Any, task: str, real: Any) -> dict[str, list[float]]:
        measured.append(task)
        if measured.count("FP") == 1 and task == "FP":
            raise KeyboardInterrupt
        return one_task(evaluation, task, real)

    one_task = evaluate.measure
    monkeypatch.setattr(evaluate, "measure", measure)
    told = arguments(road, tmp_path, batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(told)
    assert not (tmp_path / "out" / "toy.json").exists()
    evaluate.main(told)
    assert measured == ["reconstruction", "FP", "FP", "CG"]
    assert figures(tmp_path) == figures(alone)
    # A finished one leaves nothing behind, and with other settings nothing would have been taken.
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.yaml", "real", "toy.json"]


def spoiled(road: Road, folder: Path) -> Path:
    """The tokenizer with a weight that is not a number."""
    shutil.copytree(road.run_3d / "export", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["quantizer.codebook"][:] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("changes", "more", "words"),
    [
        ({"real": replace(TOY.real, num_videos=99)}, {}, "8 videos in moving shapes, split train, expected 99"),
        (
            {"real": replace(TOY.real, rule="first_k", num_clips=50)},
            {},
            "8 clips of 8 frames in 8 videos, expected 100",
        ),
        ({}, {"tasks": "[FI]"}, r"tasks=\['FI'\]: protocol toy has reconstruction, FP, CG"),
        ({}, {"transformer": "null", "tasks": "[FP]"}, r"protocol toy generates .*; give transformer=FOLDER"),
        ({"feature_network": "i3d-ts", "classifier": None, "inception_score": None}, {}, "i3d_torchscript.pt"),
        ({"size_px": 64}, {"tasks": "[reconstruction]"}, "stored frames of 32 x 32 px, expected a short side of 64"),
        ({"name": "magvit-recon"}, {}, "magvit-recon with hash .* a protocol is never edited"),
        ({}, {"decoding.steps": 3}, "steps"),
        ({}, {"protocol": "magvit-recom"}, "did you mean magvit-recon"),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_is_overwritten(
    road: Road,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    more: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setenv("MAGVIT_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "out").mkdir()
    before = json.dumps(json.loads((alone / "out" / "toy.json").read_text()) | {"figures": {}})
    (tmp_path / "out" / "toy.json").write_text(before)
    with pytest.raises(Refusal, match=words) as refusal:
        evaluate.main(arguments(road, tmp_path, replace(TOY, **changes), **more))
    assert "\n" not in str(refusal.value)
    assert (tmp_path / "out" / "toy.json").read_text() == before


def test_a_result_of_more_tasks_is_not_replaced(road: Road, alone: Path) -> None:
    before = (alone / "out" / "toy.json").read_text()
    with pytest.raises(
        Refusal, match=r"toy\.json: holds figures of CG, reconstruction, this evaluation is of FP; give"
    ):
        evaluate.main(arguments(road, alone, tasks="[FP]"))
    assert (alone / "out" / "toy.json").read_text() == before


def test_features_that_are_not_numbers_are_refused_with_their_count(road: Road, tmp_path: Path) -> None:
    given = arguments(road, tmp_path, tokenizer=spoiled(road, tmp_path / "nan"), transformer="null", batch_size=5)
    with pytest.raises(Refusal, match="features of 5 of 5 clips are not finite"):
        evaluate.main(given)
    assert not (tmp_path / "out" / "toy.json").exists()


def test_a_watcher_evaluates_each_checkpoint_of_a_run_once(road: Road, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(road.run_commit, run)
    steps = sorted(path.name for path in (run / "checkpoints").glob("step_*"))
    given = [
        word
        for word in arguments(road, tmp_path, tasks="[FP]")
        if not word.startswith(("tokenizer", "transformer", "output"))
    ]
    evaluate.main([*given, "--watch", str(run)])
    results = {path.parent.name: read_result(path) for path in sorted((run / "evaluation").glob("step_*/toy.json"))}
    assert sorted(results) == steps
    assert len({result.models["transformer"] for result in results.values()}) == len(steps) > 1
    assert not list((run / "evaluation").glob("step_*/*.model"))
    events = EventAccumulator(str(run / "evaluation" / "tensorboard")).Reload()
    shown = {event.step: event.value for event in events.Scalars("evaluation/FP/psnr")}
    expected = {int(name[5:]): result.figures["FP/psnr"].mean for name, result in results.items()}
    assert shown == pytest.approx(expected, rel=1e-6)
    times = [path.stat().st_mtime_ns for path in (run / "evaluation").rglob("toy.json")]
    # A kill between the last result and its curve.
    shutil.rmtree(run / "evaluation" / "tensorboard")
    (run / "evaluation" / steps[0] / "toy.model").mkdir()
    evaluate.main([*given, f"watch={run}"])
    events = EventAccumulator(str(run / "evaluation" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("evaluation/FP/psnr")] == [int(steps[0][5:])]
    assert not list((run / "evaluation").glob("step_*/*.model"))
    assert [path.stat().st_mtime_ns for path in (run / "evaluation").rglob("toy.json")] == times


def test_results_are_compared_under_the_words_of_the_evaluation(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = alone / "out" / "toy.json"
    evaluate.main(["--compare", str(result), str(shutil.copy(result, tmp_path))])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["+0", "difference"] in lines
    assert json.loads(result.read_text())["conditions"]["num_folds"] == 2
