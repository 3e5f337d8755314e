"""Metrics equal to the official code's: the Frechet distance of tf-gan, and the resizing before I3D."""

import re
from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange

from magvit_scale.metrics.frechet import FeatureStatistics, frechet_distance, frechet_over_folds
from magvit_scale.metrics.resize import central_crop, resize_tf1

Golden = Callable[[str], dict[str, np.ndarray]]
ROUNDING = "float32: two interpolations of values below 1, each rounded once or twice"


def cases_of(arrays: dict[str, np.ndarray]) -> list[str]:
    return sorted({key.split("/")[0] for key in arrays})


def channels_first(clip: np.ndarray) -> torch.Tensor:
    return rearrange(torch.from_numpy(clip), "b t h w c -> b c t h w")


def statistics_of(features: np.ndarray) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(torch.from_numpy(features))
    return statistics


def test_the_distance_of_the_whole_sets(golden: Golden, agree: Callable[..., None]) -> None:
    arrays = golden("frechet.npz")
    for case in cases_of(arrays):
        expected = arrays[f"{case}/scipy_float64_whole_set_ddof1"]
        found = frechet_distance(*(statistics_of(arrays[f"{case}/logits_{i}"]) for i in (1, 2)))
        scale = max(1.0, float(expected))  # of the terms whose difference it is; they don't vanish for equal sets
        agree(
            "metrics",
            "Frechet distance, whole sets",
            found / scale,
            expected / scale,
            tolerance=1e-7,
            reason="float64; the reference's matrix root keeps half of the digits without full rank (256 of 400)",
        )


def test_the_mean_and_deviation_over_folds(golden: Golden, agree: Callable[..., None]) -> None:
    arrays = golden("frechet.npz")
    for case in cases_of(arrays):
        first, second = (torch.from_numpy(arrays[f"{case}/logits_{i}"]) for i in (1, 2))
        found = frechet_over_folds(first, second, int(arrays[f"{case}/num_repeats"]))
        scale = max(1.0, float(arrays[f"{case}/mean"]))
        for what, value in zip(("mean", "std"), found, strict=True):
            agree(
                "metrics",
                f"Frechet distance over folds, {what}",
                value / scale,
                arrays[f"{case}/{what}"] / scale,
                tolerance=5e-7,
                reason="the reference is rounded to float32, and leaves out singular values below 1e-10",
            )


def test_the_resizing(golden: Golden, agree: Callable[..., None]) -> None:
    arrays = golden("metrics_resize.npz")
    clip = channels_first(arrays["input"])
    resized = [re.fullmatch(r"resize_(\d+)x(\d+)(_first_frame)?", key) for key in arrays]
    assert any(resized)
    for match in filter(None, resized):
        frames = clip[:1, :, :1] if match[3] else clip
        found = resize_tf1(frames, int(match[1]), int(match[2]))
        agree(
            "metrics", "TF1 bilinear resize", found, channels_first(arrays[match[0]]), tolerance=1e-6, reason=ROUNDING
        )


def test_the_central_crop(golden: Golden, agree: Callable[..., None]) -> None:
    arrays = golden("metrics_resize.npz")
    clip = channels_first(arrays["input"])
    crops = [match for key in arrays if (match := re.fullmatch(r"central_crop_(\d+)x(\d+)", key))]
    assert crops
    for match in crops:
        found = central_crop(clip, int(match[1]), int(match[2]))
        agree(
            "metrics", "central crop", found, channels_first(arrays[match[0]]), tolerance=0, reason="a copy of pixels"
        )
