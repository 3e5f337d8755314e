"""The tasks against plain numpy versions of their definitions (spec section 7)."""

from typing import get_args

import numpy as np
import pytest
import torch

from magvit_scale.commit.tasks import (
    MASK_TOKEN,
    NUM_SPECIAL_TOKENS,
    SEPARATOR,
    SPECS,
    canvas_index,
    canvas_of,
    canvases_of,
    condition_canvases,
    condition_mask,
    latent_mask,
    task_token,
)
from magvit_scale.config import TASKS, Refusal, Task, TransformerConfig

LATENT = (4, 16, 16)
STARTS = {
    64: [0, 2, 4, 6, 9, 11, 13, 15, 17, 19, 21, 23, 26, 28, 30, 32],
    128: [0, 4, 9, 13, 17, 21, 26, 30, 34, 38, 43, 47, 51, 55, 60, 64],
}
ALL: tuple[Task, ...] = (*TASKS, "FP5")
CANVASES = canvases_of(ALL)
PLAIN = TransformerConfig()


def plain_mask(task: Task, shape: tuple[int, int, int]) -> np.ndarray:
    """The condition of every task, from the words of spec section 7; any shape divisible by 4."""
    t, h, w = shape
    frame, row, column = np.ogrid[:t, :h, :w]
    middle_rows, middle_columns = (row >= h // 4) & (row < 3 * h // 4), (column >= w // 4) & (column < 3 * w // 4)
    start = np.round(np.linspace(0, w // 2, t))[:, None, None]
    moving = (column >= start) & (column < start + w // 2)
    conditions = {
        "FP": frame == 0,
        "FI": (frame == 0) | (frame == t - 1),
        "OPC": middle_rows & middle_columns,
        "OPV": middle_columns,
        "OPH": middle_rows,
        "OPD": moving,
        "IPC": ~(middle_rows & middle_columns),
        "IPD": ~(middle_rows & moving),
        "CG": np.array(False),
        "CFP": frame == 0,
        "FP5": frame < 5,
    }
    return np.broadcast_to(conditions[task], shape)


def plain_canvas(task: Task, clip: np.ndarray) -> np.ndarray:
    """The condition canvas of 't h w c' frames."""
    t, h, w, _ = clip.shape
    row_margin, column_margin = (h // 4, h // 4), (w // 4, w // 4)
    rows, columns = slice(h // 4, 3 * h // 4), slice(w // 4, 3 * w // 4)
    match task:
        case "FP":
            return np.repeat(clip[:1], t, axis=0)
        case "FP5":
            return clip[np.minimum(np.arange(t), 4)]
        case "FI":
            middle = [clip[0] + (clip[-1] - clip[0]) * k / (t - 1) for k in range(1, t - 1)]
            return np.stack([clip[0], *middle, clip[-1]])
        case "OPC":
            return np.pad(clip[:, rows, columns], ((0, 0), row_margin, column_margin, (0, 0)), mode="edge")
        case "OPV":
            return np.pad(clip[:, :, columns], ((0, 0), (0, 0), column_margin, (0, 0)), mode="edge")
        case "OPH":
            return np.pad(clip[:, rows], ((0, 0), row_margin, (0, 0), (0, 0)), mode="edge")
    return np.where(plain_mask(task, (t, h, w))[..., None], clip, 0.0)


def random_clip(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def frames_last(clips: torch.Tensor) -> np.ndarray:
    return clips.permute(0, 2, 3, 4, 1).numpy()


@pytest.mark.parametrize(
    ("task", "count"),
    [
        ("FP", 256),
        ("FI", 512),
        ("OPC", 256),
        ("OPV", 512),
        ("OPH", 512),
        ("OPD", 512),
        ("IPC", 768),
        ("IPD", 768),
        ("CG", 0),
        ("CFP", 256),
        ("FP5", 512),
    ],
)
def test_latent_condition_counts_are_the_papers(task: Task, count: int) -> None:
    mask = latent_mask(task, LATENT, PLAIN)
    assert mask.dtype == torch.bool
    assert mask.shape == LATENT
    assert mask.sum().item() == count


@pytest.mark.parametrize("task", ALL)
@pytest.mark.parametrize("size_px", [64, 128])
def test_the_papers_dynamic_conditions_are_latents_of_any_given_pixel(task: Task, size_px: int) -> None:
    """And all other tasks' conditions are so in the released code too."""
    factor = size_px // 16
    given = plain_mask(task, (16, size_px, size_px)).reshape(4, 4, 16, factor, 16, factor).any(axis=(1, 3, 5))
    paper = latent_mask(task, LATENT, TransformerConfig(dynamic_condition="paper")).numpy()
    np.testing.assert_array_equal(paper, given)
    assert paper.sum() == {"OPD": 640, "IPD": 832}.get(task, latent_mask(task, LATENT, PLAIN).sum().item())


@pytest.mark.parametrize("task", ALL)
@pytest.mark.parametrize("shape", [LATENT, (2, 8, 8), (16, 64, 64), (8, 16, 24)])
def test_masks_are_the_definitions(task: Task, shape: tuple[int, int, int]) -> None:
    np.testing.assert_array_equal(condition_mask(task, shape).numpy(), plain_mask(task, shape))


def test_the_moving_strip_of_latents_starts_at_the_official_columns() -> None:
    mask = latent_mask("OPD", LATENT, PLAIN)
    starts = mask[:, 0].int().argmax(1).tolist()
    assert starts == [0, 3, 5, 8]
    assert mask[:, 0].sum(1).tolist() == [8] * 4


@pytest.mark.parametrize("size_px", [64, 128])
def test_the_moving_strip_of_pixels_starts_at_the_official_columns(size_px: int) -> None:
    mask = condition_mask("OPD", (16, size_px, size_px))
    assert mask[:, 0].int().argmax(1).tolist() == STARTS[size_px]
    assert mask.sum((1, 2)).tolist() == [size_px * size_px // 2] * 16
    hole = ~condition_mask("IPD", (16, size_px, size_px))
    assert hole[:, size_px // 2].int().argmax(1).tolist() == STARTS[size_px]
    assert hole.any(2)[0].nonzero().flatten().tolist() == list(range(size_px // 4, 3 * size_px // 4))


def test_masks_are_nobody_elses_memory() -> None:
    mask = condition_mask("FP", LATENT)
    mask[1, 2, 3] = True  # an expanded view would refuse, or show it in a whole row
    assert mask.sum().item() == 257
    assert condition_mask("FP", LATENT).sum().item() == 256


@pytest.mark.parametrize("task", CANVASES)
@pytest.mark.parametrize("shape", [(16, 32, 32), (8, 16, 24)])
def test_canvases_are_the_definitions(task: Task, shape: tuple[int, int, int]) -> None:
    clip = random_clip(2, 3, *shape)
    canvas = SPECS[task].fill(clip)  # type: ignore[misc]
    expected = np.stack([plain_canvas(task, frames) for frames in frames_last(clip)])
    np.testing.assert_allclose(frames_last(canvas), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", CANVASES)
def test_given_pixels_are_kept_to_the_bit(task: Task) -> None:
    clip = torch.randint(0, 256, (2, 3, 16, 32, 32), generator=torch.Generator().manual_seed(0)) / 255
    given = condition_mask(task, (16, 32, 32)).expand_as(clip)
    assert torch.equal(SPECS[task].fill(clip)[given], clip[given])  # type: ignore[misc]


@pytest.mark.parametrize("task", CANVASES)
def test_a_canvas_depends_on_given_pixels_only(task: Task) -> None:
    clip = random_clip(1, 3, 16, 32, 32)
    hidden = ~condition_mask(task, (16, 32, 32)).expand_as(clip)
    other = torch.where(hidden, 1 - clip, clip)
    fill = SPECS[task].fill
    assert torch.equal(fill(clip), fill(other))  # type: ignore[misc]


def test_canvases_come_after_the_clip_in_their_order() -> None:
    clip = random_clip(2, 3, 8, 16, 16)
    canvases = condition_canvases(clip, CANVASES)
    assert canvases.shape == (2, 10, 3, 8, 16, 16)
    assert torch.equal(canvases[:, 0], clip)
    for index, task in enumerate(CANVASES, start=1):
        assert torch.equal(canvases[:, index], SPECS[task].fill(clip))  # type: ignore[misc]


def test_class_conditional_prediction_shares_its_canvas_and_generation_has_none() -> None:
    assert set(SPECS) == set(ALL) == set(get_args(Task))
    assert canvases_of(TASKS) == ("FP", "FI", "OPC", "OPV", "OPH", "OPD", "IPC", "IPD")
    assert {task: canvas_of(task) for task in ("CFP", "CG", "OPD")} == {"CFP": "FP", "CG": None, "OPD": "OPD"}
    assert {task for task in ALL if SPECS[task].is_class_conditional} == {"CG", "CFP"}


def test_only_the_canvases_that_tasks_need_are_named_once_and_in_one_order() -> None:
    assert canvases_of(["CG"]) == ()
    assert canvases_of(["IPD", "CFP", "CG", "FP", "IPD"]) == ("FP", "IPD")
    assert condition_canvases(random_clip(2, 3, 8, 16, 16), ()).shape[1] == 1


def test_a_canvas_is_found_by_name_or_refused() -> None:
    held = ("z", "FI", "FP")
    assert [canvas_index(task, held, PLAIN) for task in ("CG", "CFP", "FI")] == [0, 2, 1]
    with pytest.raises(
        Refusal, match=r"OPC needs .* canvas OPC, .* hold z, FI, FP; run magvit precompute-tokens"
    ) as no:
        canvas_index("OPC", held, PLAIN)
    assert "\n" not in str(no.value)
    assert canvas_index("OPC", held, TransformerConfig(conditioning="latent")) == 0  # the clip's own tokens


def test_tokens_are_the_official_ones() -> None:
    assert (MASK_TOKEN, SEPARATOR, NUM_SPECIAL_TOKENS) == (-1, -2, 16)
    expected = {
        "FP": -4,
        "FI": -5,
        "OPC": -6,
        "OPV": -6,
        "OPH": -6,
        "OPD": -6,
        "IPC": -7,
        "IPD": -7,
        "CG": -3,
        "CFP": -4,
        "FP5": -4,
    }
    assert {task: task_token(task, PLAIN) for task in ALL} == expected
    shared = expected | {"IPC": -6, "IPD": -6}
    assert {task: task_token(task, TransformerConfig(inpainting_token="outpainting")) for task in ALL} == shared
    assert {task_token(task, TransformerConfig(conditioning="latent")) for task in ALL} == {-3}


def test_the_middle_is_half_of_every_even_side() -> None:
    assert condition_mask("OPV", (1, 1, 6)).flatten().tolist() == [False, True, True, True, False, False]
    assert condition_mask("OPH", (1, 10, 1)).sum().item() == 5


@pytest.mark.parametrize("width", [7, 9])
def test_the_moving_strip_of_an_odd_width_starts_at_the_official_columns(width: int) -> None:
    expected = np.round(np.linspace(0, width // 2, 4)).tolist()
    assert condition_mask("OPD", (4, 1, width))[:, 0].int().argmax(1).tolist() == expected
