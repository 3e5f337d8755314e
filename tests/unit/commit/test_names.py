"""Tasks, classes and seeds as people write them."""

import pytest
import torch

from magvit_scale.commit.names import count_clips, labels_of, seeds_of, task_named
from magvit_scale.config import Refusal

CLASSES = ("Archery", "BabyCrawling", "3")


@pytest.mark.parametrize(
    ("name", "task"),
    [("FP", "FP"), ("fp5", "FP5"), ("frame_prediction", "FP"), ("class_conditional_generation", "CG"),
     ("class-conditional frame prediction", "CFP"), ("frame_prediction_from_five", "FP5"),
     ("Dynamic Inpainting", "IPD")],
)  # fmt: skip
def test_a_task_has_two_names(name: str, task: str) -> None:
    assert task_named(name) == task


def test_an_unknown_task_is_refused_with_the_nearest() -> None:
    with pytest.raises(Refusal, match=r"'frame_predicton'; the nearest is frame_prediction$"):
        task_named("frame_predicton")
    with pytest.raises(Refusal, match=r"'XYZ'; expected one of FP, FI, OPC"):
        task_named("XYZ")


def test_labels_are_names_numbers_or_tensors_and_a_single_one_holds_for_all() -> None:
    def labels(label: object, num_clips: int = 2) -> list[int]:
        found = labels_of(label, CLASSES, 3, num_clips)  # type: ignore[arg-type]
        assert found.dtype == torch.int64
        return found.tolist()

    assert labels(None) == [-1, -1]
    assert labels(2) == labels("3") == [2, 2]
    assert labels(["BabyCrawling", 0]) == labels(torch.tensor([1, 0])) == [1, 0]
    assert labels(torch.tensor(1), 3) == [1, 1, 1]
    assert labels([-1, "Archery"]) == [-1, 0]


def test_labels_that_no_model_knows_are_refused() -> None:
    for label, classes, words in (
        ("Babycrawling", CLASSES, "'Babycrawling'; the nearest is 'BabyCrawling'"),
        ("Zumba", CLASSES, "'Zumba'; the first of 3 is 'Archery'"),
        ("Archery", (), "'Archery': these models come without class names; give its number"),
        (3, CLASSES, r"class \[3\], expected ids in \[0, 3\)"),
        ([0, 1, 2], CLASSES, "3 labels for 2 clips"),
        (torch.tensor([0.5, 1]), CLASSES, "labels of torch.float32"),
    ):
        with pytest.raises(Refusal, match=words) as refusal:
            labels_of(label, classes, 3, 2)  # type: ignore[arg-type]
        assert "\n" not in str(refusal.value)


def test_one_seed_counts_on_and_several_are_taken_as_they_are() -> None:
    assert seeds_of(7, 3) == [7, 8, 9]
    assert seeds_of((4, 4), 2) == [4, 4]
    with pytest.raises(Refusal, match="2 seeds for 3 clips"):
        seeds_of((4, 4), 3)


def test_labels_before_seeds_say_how_many_clips() -> None:
    assert count_clips(["Archery", 1], [1, 2, 3]) == 2
    assert count_clips("Archery", [1, 2, 3]) == 3
    assert count_clips(1, 5) is None
    assert count_clips(None, 5) is None
