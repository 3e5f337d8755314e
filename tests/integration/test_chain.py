"""What every program of the road leaves behind, and that running it again changes nothing."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from magvit_scale import judge, precompute_tokens, report, train_commit
from magvit_scale.commit.tasks import SPECS, canvases_of
from magvit_scale.commit.transformer import CommitTransformer
from magvit_scale.config import TASKS, OptimConfig, TrainCommitConfig, TrainVQGANConfig, load
from magvit_scale.data.shards import load_dataset
from magvit_scale.data.token_shards import TokenShards
from magvit_scale.pretrained import hash_model
from magvit_scale.training.schedule import learning_rate
from magvit_scale.video import decode
from magvit_scale.vqgan.autoencoder import VQGAN
from tests.integration.alike import points
from tests.integration.conftest import (
    ADVERSARIAL_START,
    NUM_CLASSES,
    NUM_TEST,
    NUM_TRAIN,
    STEPS_2D,
    STEPS_3D,
    STEPS_COMMIT,
    Road,
    bytes_of,
    run_all,
)

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
GAN = {"loss/generator", "loss/discriminator", "loss/r1", "loss/lecam", "gan/accuracy_real", "gan/accuracy_fake",
       "gan/accuracy", "gan/logits_real", "gan/logits_fake", "gan/lecam_gap",
       "optim/gradient_norm_discriminator"}  # fmt: skip
PERF = {f"perf/{name}" for name in ("step_s", "data_wait_s", "data_wait_share", "rank_hours", "samples_per_s",
                                    "samples_per_s_per_rank", "memory_peak_gb", "tflops", "mfu")}  # fmt: skip


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_videos_become_clip_shards(road: Road) -> None:
    manifest = [json.loads(line) for line in (road.manifest / "manifest.jsonl").read_text().splitlines()]
    assert len(manifest) == NUM_TRAIN + NUM_TEST
    dataset = load_dataset(road.shards)
    assert len(dataset.classes) == NUM_CLASSES
    found = {split: dataset.samples(split) for split in ("train", "test")}
    assert {split: len(samples) for split, samples in found.items()} == {"train": NUM_TRAIN, "test": NUM_TEST}
    assert {sample.class_id for sample in found["test"]} == set(range(NUM_CLASSES))
    assert not {sample.key for sample in found["train"]} & {sample.key for sample in found["test"]}
    assert {sample.num_frames for samples in found.values() for sample in samples} == {16}


@pytest.mark.parametrize(
    ("run", "steps", "schema"),
    [("run_2d", STEPS_2D, TrainVQGANConfig), ("run_3d", STEPS_3D, TrainVQGANConfig),
     ("run_commit", STEPS_COMMIT, TrainCommitConfig)],
)  # fmt: skip
def test_a_run_folder_is_complete(road: Road, run: str, steps: int, schema: type) -> None:
    folder = road.root / run
    assert names(folder) == [
        "checkpoints",
        "config.yaml",
        "env.json",
        "export",
        "log.txt",
        "metrics.jsonl",
        "tensorboard",
    ]
    config: Any = load(schema, [folder / "config.yaml"])
    assert (config.run.folder, config.run.steps) == (str(folder), steps)
    kept = sorted(set(range(2, steps + 1, 2)) | {steps})[-2:]
    assert names(folder / "checkpoints") == ["latest", *(f"step_{step:08d}" for step in kept)]
    assert (folder / "checkpoints" / "latest").read_text() == f"step_{steps:08d}"
    assert [line["step"] for line in lines(folder) if "optim/learning_rate" in line] == list(range(1, steps + 1))
    shown = points(folder)
    assert [step for step, _ in shown["optim/learning_rate"]] == list(range(1, steps + 1))
    for tag, text in (("config", (folder / "config.yaml").read_text().split(str(folder))[1]), ("environment", "torch")):
        ((step, (said,)),) = shown[f"{tag}/text_summary"]
        assert step == 1
        assert text in said.decode()


def test_the_3d_run_trains_its_discriminator_from_its_start_on(road: Road) -> None:
    found = [line for line in lines(road.run_3d) if "loss/reconstruction" in line]
    assert [line["step"] for line in found if set(line) & GAN] == list(range(ADVERSARIAL_START + 1, STEPS_3D + 1))
    assert all(set(line) >= GAN for line in found[ADVERSARIAL_START:])
    always = {
        "loss/reconstruction",
        "loss/perceptual",
        "loss/quantizer",
        "loss/commitment",
        "loss/codebook",
        "loss/entropy",
        "loss/generator_total",
        "codebook/usage_batch",
        "codebook/usage_window",
        "codebook/perplexity",
        "codebook/dead_codes",
        "codebook/oldest_age",
        "optim/gradient_norm_generator",
        "optim/learning_rate",
        "perf/frames_per_s",
        "step",
        "time",
        *PERF,
    }
    assert all(set(line) - GAN == always for line in found)
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=1)
    expected = [learning_rate(step, STEPS_3D, optim) for step in range(STEPS_3D)]
    assert [line["optim/learning_rate"] for line in found] == pytest.approx(expected, rel=1e-5, abs=1e-12)
    before, after = (load_file(folder / "discriminator" / "model.safetensors")
                     for folder in (road.inflated, road.run_3d / "export"))  # fmt: skip
    assert (before["conv_in.weight"] - after["conv_in.weight"]).abs().max() > 1e-4
    assert "UNTRAINED" in (road.run_3d / "log.txt").read_text()
    assert "UNTRAINED" not in (road.run_2d / "log.txt").read_text()


def test_tensorboard_shows_the_same_held_out_clips_every_time(road: Road) -> None:
    shown = points(road.run_3d)
    frames = {}
    for kind, encoding, num_frames in (("moving", "GIF", 8), ("still", "PNG", 1)):
        assert [step for step, _ in shown[f"reconstructions/{kind}"]] == [3, 6]
        found = [Image.open(io.BytesIO(value[2])) for _, value in shown[f"reconstructions/{kind}"]]
        assert [(picture.format, getattr(picture, "n_frames", 1), picture.size) for picture in found] == [
            (encoding, num_frames, (NUM_TEST * 32, 96))
        ] * 2
        frames[kind] = [np.array(picture.convert("RGB")) for picture in found]
    first, last = frames["still"]
    assert np.array_equal(first[:32], last[:32])
    assert not np.array_equal(first[32:64], last[32:64])
    scored = [line for line in lines(road.run_3d) if "validation/psnr" in line]
    assert [line["step"] for line in scored] == [3, 6]
    assert set(scored[0]) == {"step", "time", *(f"validation/{name}" for name in ("psnr", "psnr_moving", "ssim"))}
    assert [step for step, _ in shown["codebook/use"]] == [3, 6]
    codes = [sum(count for _, _, count in buckets) for _, buckets in shown["codebook/use"]]
    assert codes == [32, 32]


def test_tensorboard_shows_every_task(road: Road) -> None:
    shown = points(road.run_commit)
    sizes = {"generated": (NUM_TEST * 32, 96), "decoding": (12 * 132 - 4, 260)}
    assert {tag for tag in shown if tag.split("/")[0] in sizes} == {f"{row}/{task}" for row in sizes for task in TASKS}
    for task in TASKS:
        for row, size in sizes.items():
            assert [step for step, _ in shown[f"{row}/{task}"]] == [3, 6]
            assert Image.open(io.BytesIO(shown[f"{row}/{task}"][-1][1][2])).size == size
    assert {f"validation/{task}" for task in TASKS} <= shown.keys()


def test_exports_are_the_averaged_models_beside_the_unaveraged(road: Road) -> None:
    for folder, ndim in ((road.run_2d / "export", 2), (road.inflated, 3), (road.run_3d / "export", 3)):
        assert names(folder) == ["config.json", "discriminator", "model.safetensors", "unaveraged"]
        assert VQGAN.from_pretrained(folder).config.ndim == ndim
        averaged, unaveraged = (load_file(f / "model.safetensors") for f in (folder, folder / "unaveraged"))
        assert averaged.keys() == unaveraged.keys()
        assert any(not averaged[name].equal(unaveraged[name]) for name in averaged)
    trained, inflated = (load_file(f / "model.safetensors") for f in (road.run_3d / "export", road.inflated))
    assert not trained["quantizer.codebook"].equal(inflated["quantizer.codebook"])
    transformer = CommitTransformer.from_pretrained(road.run_commit / "export")
    assert transformer.config.latent_shape == (4, 8, 8)
    assert (transformer.codebook_size, transformer.num_classes) == (32, NUM_CLASSES)


@pytest.mark.parametrize(("split", "count"), [("train", NUM_TRAIN), ("test", NUM_TEST)])
def test_tokens_are_of_this_tokenizer_and_these_clips(road: Road, split: str, count: int) -> None:
    shards, clips = TokenShards.open(road.root / "tokens" / split), load_dataset(road.shards)
    assert (shards.num_clips, shards.views, shards.split) == (count, 2, split)
    assert shards.canvases == ("z", *canvases_of(TASKS))
    assert (shards.latent_shape, shards.codebook_size, shards.classes) == ((4, 8, 8), 32, clips.classes)
    assert (shards.tokenizer_hash, shards.clips_hash) == (hash_model(road.run_3d / "export"), clips.hash)
    assert list(shards.keys) == [sample.key for sample in clips.samples(split)]
    assert shards.labels.tolist() == [sample.class_id for sample in clips.samples(split)]
    tokens, _ = shards.batch(range(count), [0] * count)
    assert tokens.max() < 32
    assert len(tokens.unique()) > 1
    other_view, _ = shards.batch(range(count), [1] * count)
    assert not tokens.equal(other_view)


def test_every_part_of_commits_loss_is_logged(road: Road) -> None:
    training = [line for line in lines(road.run_commit) if "loss/total" in line]
    assert len(training) == STEPS_COMMIT
    for line in training:
        assert set(line) == {
            "step",
            "time",
            "loss/total",
            "loss/refine",
            "loss/mask",
            "loss/reconstruct",
            "mask/accuracy",
            "mask/ratio",
            "optim/gradient_norm_transformer",
            "optim/learning_rate",
            *PERF,
        }
        assert 2 < line["loss/total"] < 6  # log 32 = 3.5
    validation = [line for line in lines(road.run_commit) if "loss/total" not in line]
    assert [line["step"] for line in validation] == [3, 6]
    assert set(validation[0]) == {"step", "time", *(f"validation/{task}" for task in TASKS)}


def test_one_clip_is_generated_per_task(road: Road) -> None:
    assert names(road.generated) == sorted(["config.yaml", "samples.npz", *TASKS])
    with np.load(road.generated / "samples.npz", allow_pickle=False) as arrays:
        assert len(arrays["classes"]) == NUM_CLASSES
        for task in TASKS:
            clips = {kind: arrays[f"{task}/{kind}"] for kind in ("condition", "generated", "real")}
            assert {kind: (clip.shape, str(clip.dtype)) for kind, clip in clips.items()} == dict.fromkeys(
                clips, ((1, 8, 32, 32, 3), "uint8")
            )
            assert arrays[f"{task}/label"].shape == (1,)
            fixed = arrays[f"trajectory/{task}/fixed"]
            assert fixed.shape == (3, 4, 8, 8)
            assert fixed[-1].all()
            assert (np.diff(fixed.astype(int), axis=0) >= 0).all()
            assert arrays[f"trajectory/{task}/clips"].shape == (3, 8, 32, 32, 3)
            # All steps of one sample are detokenized together, which may round another way than a sample alone.
            last = arrays[f"trajectory/{task}/clips"][-1].astype(int)
            assert np.abs(last - clips["generated"][0]).max() <= 1
            videos = [f"0000_{kind}.mp4" for kind in ("condition", "generated", "real")]
            assert names(road.generated / task) == [*videos, "0000_steps.png", "tokens.npz"]
        assert (arrays["FP/condition"][0, 0] == arrays["FP/real"][0, 0]).all()
        assert (arrays["FP/condition"][0, 1:] == 128).all()
        assert (arrays["CG/condition"] == 128).all()
    assert decode(road.generated / "FP" / "0000_real.mp4", size_px=128).shape == (8, 128, 128, 3)


def test_the_judgement_says_what_was_measured_and_on_what(road: Road) -> None:
    assert names(road.judgement) == ["config.yaml", "reconstructions.npz", "results.json"]
    results = json.loads((road.judgement / "results.json").read_text())
    assert results["models"] == {"tokenizer": hash_model(road.run_3d / "export"),
                                 "transformer": hash_model(road.run_commit / "export")}  # fmt: skip
    protocol = results["protocol"]
    assert protocol["clips"] == 4
    assert protocol["clip"]["shards"] == load_dataset(road.shards).hash
    assert re.fullmatch("[0-9a-f]{64}", protocol["sha256"])
    assert set(results["reconstruction"]) == {"trained", "inflated", "mean_image"}
    assert all(5 < scores["psnr_moving"] < 60 for scores in results["reconstruction"].values())
    assert set(results["cross_entropy"]) == set(TASKS)
    assert all(set(figures) == {"commit", "per_position", "unigram"} for figures in results["cross_entropy"].values())
    assert sum(results["codebook"]["counts"]) == NUM_TEST * 2 * 4 * 8 * 8
    assert 0 < results["codebook"]["used"] <= 1
    for gate in results["gates"]:
        is_better = gate["value"] > gate["baseline"] if gate["higher_is_better"] else gate["value"] < gate["baseline"]
        assert gate["passed"] == is_better
    assert [gate["id"] for gate in results["gates"]] == ["a", "b", "c", "d"]
    with np.load(road.judgement / "reconstructions.npz", allow_pickle=False) as arrays:
        assert {key: arrays[key].shape for key in ("original", "reconstruction", "inflated")} == dict.fromkeys(
            ("original", "reconstruction", "inflated"), (4, 8, 32, 32, 3)
        )


def test_the_report_is_one_self_contained_page_with_ten_tasks(road: Road) -> None:
    page = (road.root / "report.html").read_text(encoding="utf-8")
    linked = re.findall(r"""(?:src|href|srcset|poster|data)\s*=\s*["']?([^"'\s>]+)""", page)
    assert [link for link in linked if not link.startswith(("data:", "#"))] == []
    assert not re.search(r"@import|url\((?!['\"]?(?:data:|#))", page)
    tasks = page[page.index('<section id="tasks"') : page.index('<section id="decoding"')]
    assert [task for task in TASKS if SPECS[task].title.lower() not in tasks.lower() and f">{task}<" not in tasks] == []
    assert tasks.count("data:image/") >= len(TASKS)
    for anchor in ("gates", "reconstructions", "decoding", "training", "codebook", "figures", "reproduce"):
        assert f'<section id="{anchor}"' in page
    assert "untrained" in page.lower()


def test_the_report_ends_non_zero_where_a_gate_failed_and_writes_its_page_first(road: Road) -> None:
    gates = json.loads((road.judgement / "results.json").read_text())["gates"]
    failed = [gate["id"] for gate in gates if not gate["passed"]]
    assert failed, "no gate failed after six steps: the gates can be fooled"
    page = road.root / "report.html"
    before = page.read_bytes()
    page.unlink()
    with pytest.raises(SystemExit, match=rf"report: {len(failed)} of 4 gates failed: {failed[0]} "):
        report.main(road.report(gate="fail"))
    assert page.read_bytes() == before


def test_running_any_program_again_changes_no_byte(road: Road) -> None:
    before = bytes_of(road.root)
    run_all(road)
    after = bytes_of(road.root)
    assert after.keys() == before.keys()
    assert [path for path in before if before[path] != after[path]] == []


@pytest.mark.parametrize("conditioning", ["canvas", "latent", "prefix"])
def test_the_other_conditionings_train_show_and_are_evaluated(road: Road, tmp_path: Path, conditioning: str) -> None:
    """The baselines of MAGVIT's ablation: the same programs, one switch, and only the tokens that one task needs."""
    tasks = ["tasks=[CG]" if conditioning == "latent" else "tasks=[OPH]"]
    tokens = {split: tmp_path / split for split in ("train", "test")}
    for split, folder in tokens.items():
        precompute_tokens.main([*road.tokens(split), *tasks, f"output={folder}"])
    folders = [f"tokens={tokens['train']}", f"validation_tokens={tokens['test']}"]
    run = [*road.commit(tmp_path / "run"), *folders, "tasks=[OPH]", f"model.conditioning={conditioning}"]
    train_commit.main([*run, "run.steps=3"])
    saved = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert (saved["conditioning"], saved["tasks"]) == (conditioning, ["OPH"])
    folders = [f"train_tokens={tokens['train']}", f"test_tokens={tokens['test']}", f"output={tmp_path / 'judgement'}"]
    judge.main([*road.judge(), f"transformer={tmp_path / 'run'}/export", *folders, "tasks=[OPH]"])
    results = json.loads((tmp_path / "judgement" / "results.json").read_text())
    assert set(results["cross_entropy"]) == {"OPH"}
    assert [gate["id"] for gate in results["gates"]] == ["a", "b", "c"]
