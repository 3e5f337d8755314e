"""What is shown of a run, on clips whose errors and decoding are known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magvit_scale.commit.decoding import Decoded
from magvit_scale.metrics.reconstruction import psnr, psnr_moving, ssim
from magvit_scale.pictures import KEPT, NEWLY_KEPT, UNKNOWN
from magvit_scale.pipeline import MagvitPipeline
from magvit_scale.showing import ERROR_FACTOR, show_reconstructions, show_task


class Board:
    """Takes down what a tracker is given."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.pictures: dict[str, Any] = {}
        self.words: dict[str, str] = {}

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.values |= values

    def picture(self, step: int, name: str, pixels: Any, words: str) -> None:
        self.pictures[name], self.words[name] = pixels, words

    moving_picture = picture


def grey(levels: list[float], size: int = 16) -> Tensor:
    """Two clips whose frames have these grey levels."""
    return torch.tensor(levels).reshape(1, 1, -1, 1, 1).expand(2, 3, -1, size, size).clone()


def shown(original: Tensor, reconstruction: Tensor) -> Any:
    board: Any = Board()
    show_reconstructions(board, 5, original, reconstruction)
    return board


def test_reconstructions_stand_under_their_clips_and_the_enlarged_error_under_both() -> None:
    board = shown(grey([0.0, 0.4, 0.8]), grey([0.1, 0.4, 0.4]))
    moving = board.pictures["reconstructions/moving"]
    assert moving.shape == (3, 48, 32, 3)
    levels = moving.reshape(3, 3, 16, 32, 3)[:, :, 0, 20, 0]  # of the second clip, 'frame row'
    assert levels.tolist() == [[0, 26, 102], [102, 102, 0], [204, 102, 255]]
    assert np.array_equal(board.pictures["reconstructions/still"], moving[1])
    assert f"error {ERROR_FACTOR} times" in board.words["reconstructions/still"]


def test_the_scores_are_those_of_the_clips_that_are_seen() -> None:
    original, fake = torch.rand(2, 2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0)).unbind(0)
    expected = {"psnr": psnr(original, fake).mean().item(), "ssim": ssim(original, fake).mean().item(),
                "psnr_moving": psnr_moving(original, fake)}  # fmt: skip
    assert shown(original, fake).values == {f"validation/{name}": value for name, value in expected.items()}


def test_a_score_that_there_is_not_is_left_out() -> None:
    assert set(shown(grey([0.5]), grey([0.6])).values) == {"validation/psnr", "validation/ssim"}
    assert set(shown(grey([0.0, 1.0], 8), grey([0.5, 0.5], 8)).values) == {"validation/psnr", "validation/psnr_moving"}


class Pipeline:
    """Generates white clips; after step k of 3 a clip is a k-th white, and k latents of every time are kept."""

    transformer = SimpleNamespace(latent_shape=(2, 2, 2))

    def generate_from_tokens(self, task: str, condition: Tensor, label: Tensor, count: int, *, seed: int) -> Any:
        self.asked = (task, condition.tolist(), label.tolist(), count, seed)
        steps = torch.arange(1, 4)[:, None, None]
        tokens, is_kept = steps.expand(3, count, 8), torch.arange(8) % 4 < steps.expand(3, count, 8)
        return SimpleNamespace(clips=grey([1.0] * 4), decoded=Decoded(tokens[-1], tokens, is_kept))

    trajectory = MagvitPipeline.trajectory

    def detokenize(self, tokens: Tensor) -> Tensor:
        return (tokens[:, 0] / 3).reshape(-1, 1, 1, 1, 1).expand(-1, 3, 4, 16, 16)


def test_a_task_shows_what_is_given_generated_and_real_and_how_it_came_about() -> None:
    board, pipeline = Board(), Pipeline()
    condition, label = torch.zeros(2, 2, 2, 2, dtype=torch.int64), torch.tensor([3, 4])
    show_task(board, 5, pipeline, "FP", condition, label, grey([0.2, 0.4, 0.6, 0.8]), 9)  # type: ignore[arg-type]
    assert pipeline.asked == ("FP", condition.tolist(), [3, 4], 2, 9)
    moving = board.pictures["generated/FP"]
    assert moving.shape == (4, 48, 32, 3)
    assert moving[:, ::16, 0, 0].tolist() == [[51, 255, 51], [128, 255, 102], [128, 255, 153], [128, 255, 204]]
    strip = board.pictures["decoding/FP"]
    assert strip.shape == (128 + 4 + 128, 3 * 128 + 2 * 4, 3)  # frames of 16 px are enlarged, with gaps
    assert strip[0, ::132, 0].tolist() == [85, 170, 255]
    reds = {UNKNOWN[0]: ".", KEPT[0]: "o", NEWLY_KEPT[0]: "x"}
    cells = [
        "".join(reds[strip[y, x, 0]] for step in range(3) for x in (132 * step + 9, 132 * step + 73))
        for y in (140, 205)
    ]
    assert cells == ["x.oxoo", "....x."]  # two rows of two tokens, at each step


@pytest.mark.parametrize("task", ["CG", "OPC"])
def test_what_a_task_does_not_give_is_grey(task: Any) -> None:
    board = Board()
    tokens = torch.zeros(2, 2, 2, 2, dtype=torch.int64)
    show_task(board, 5, Pipeline(), task, tokens, torch.zeros(2).long(), grey([1.0] * 4), 0)  # type: ignore[arg-type]
    given = board.pictures[f"generated/{task}"][0, :16, :16, 0]
    assert set(given.flatten().tolist()) == ({128} if task == "CG" else {128, 255})
    assert given[0, 0] == 128
    assert given[8, 8] == (128 if task == "CG" else 255)
