"""What stands beside each other: like with like, and the reason where not."""

from magvit_scale.page.grouping import grouped


def test_an_item_stands_with_those_it_is_like_to_and_says_why_not_with_others() -> None:
    def far_apart(one: int, other: int) -> str:
        return f"{one} and {other}" if abs(one - other) > 1 else ""

    groups = grouped({"a": 1, "b": 5, "c": 2, "d": 3}, far_apart)
    assert [group.members for group in groups] == [{"a": 1, "c": 2}, {"b": 5}, {"d": 3}]  # d is like c but not like a
    assert [group.reasons for group in groups] == [[], ["1 and 5"], ["1 and 3", "5 and 3"]]
