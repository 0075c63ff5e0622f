"""Workers that are changed one by one: in which order, and what happens when one can't be had."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bert_serving.server.replacement import (
    DropSuccessor,
    EndLeaver,
    Finished,
    Install,
    Remove,
    Replacement,
    StartSuccessor,
    Step,
    steps_between,
)

configs = st.dictionaries(st.integers(0, 5), st.sampled_from("ab"), min_size=1)


def replacement(*steps: Step[str]) -> Replacement[str]:
    return Replacement(steps, leave_timeout_s=30.0, boot_timeout_s=100.0)


def test_a_worker_leaves_when_its_successor_is_ready_and_the_next_begins_when_it_is_gone() -> None:
    change = replacement(Step(0, "old", "new"), Step(1, "old", "new"))
    assert change.begin(0.0) == [StartSuccessor(0, "new")]
    assert change.on_ready(1.0) == [Install(0)]
    assert change.on_left(2.0) == [StartSuccessor(1, "new")]
    assert change.on_ready(3.0) == [Install(1)]
    assert change.on_left(4.0) == [Finished(None)]


def test_a_new_place_is_there_at_once_and_an_old_one_when_it_is_empty() -> None:
    change = replacement(Step(2, None, "new"), Step(1, "old", None))
    assert change.begin(0.0) == [StartSuccessor(2, "new")]
    assert change.on_ready(1.0) == [Install(2), Remove(1)]
    assert change.on_left(2.0) == [Finished(None)]


def test_a_first_successor_that_cannot_be_had_leaves_all_as_it_was() -> None:
    change = replacement(Step(0, "old", "new"), Step(1, "old", "new"))
    change.begin(0.0)
    assert change.on_failed("no memory", 1.0) == [DropSuccessor(), Finished("no memory")]


def test_when_a_later_one_cannot_be_had_those_before_it_go_back() -> None:
    change = replacement(Step(2, None, "new"), Step(0, "old", "new"), Step(1, "old", "new"))
    change.begin(0.0)
    change.on_ready(1.0)
    change.on_ready(2.0)
    change.on_left(3.0)
    assert change.on_failed("no memory", 4.0) == [DropSuccessor(), StartSuccessor(0, "old")]
    assert change.on_ready(5.0) == [Install(0)]
    assert change.on_left(6.0) == [Remove(2)]
    assert change.on_left(7.0) == [Finished("no memory")]


def test_going_back_that_fails_too_says_both_causes() -> None:
    change = replacement(Step(0, "old", "new"), Step(1, "old", "new"))
    change.begin(0.0)
    change.on_ready(1.0)
    change.on_left(2.0)
    change.on_failed("no memory", 3.0)
    (dropped, finished) = change.on_failed("no file", 4.0)
    assert dropped == DropSuccessor()
    assert isinstance(finished, Finished)
    assert finished.cause == "no memory; nor can it be undone: no file"


def test_those_loaded_anew_from_the_same_model_need_not_go_back() -> None:
    change = replacement(Step(0, "same", "same"), Step(1, "same", "same"))
    change.begin(0.0)
    change.on_ready(1.0)
    change.on_left(2.0)
    assert change.on_failed("no memory", 3.0) == [DropSuccessor(), Finished("no memory")]


def test_a_successor_that_is_never_ready_is_given_up() -> None:
    change = replacement(Step(0, "old", "new"))
    change.begin(0.0)
    assert change.on_time(99.0) == []
    assert change.on_time(100.0) == [
        DropSuccessor(),
        Finished("it was not ready within 100 s"),
    ]


def test_a_worker_that_does_not_leave_is_ended_and_waited_for() -> None:
    change = replacement(Step(0, "old", "new"))
    change.begin(0.0)
    change.on_ready(10.0)
    assert change.on_time(39.0) == []
    assert change.on_time(40.0) == [EndLeaver()]
    assert change.on_time(41.0) == []
    assert change.on_left(42.0) == [Finished(None)]


def test_what_comes_at_the_wrong_time_changes_nothing() -> None:
    change = replacement(Step(0, "old", "new"))
    change.begin(0.0)
    assert change.on_left(1.0) == []
    change.on_ready(2.0)
    assert change.on_ready(3.0) == []
    assert change.on_failed("late", 3.0) == []
    change.on_left(4.0)
    assert change.on_ready(5.0) == change.on_left(5.0) == change.on_time(1e9) == []


def test_workers_are_added_first_and_removed_last() -> None:
    steps = steps_between({0: "a", 1: "b", 2: "c"}, {0: "a", 1: "x", 3: "d"})
    assert steps == [Step(3, None, "d"), Step(1, "b", "x"), Step(2, "c", None)]
    assert steps_between({0: "a"}, {0: "a"}) == []
    assert steps_between({0: "a"}, {0: "a"}, all_anew=True) == [Step(0, "a", "a")]


class World:
    """What the actions make of the places; fails where one would leave too few workers."""

    def __init__(self, places: dict[int, str]) -> None:
        self.places = dict(places)
        self.least = len(places)
        self.coming: str | None = None
        self.is_leaving = False
        self.end: Finished | None = None

    def act(self, actions: list[Any]) -> None:
        for action in actions:
            assert self.end is None, "something came after the end"
            if isinstance(action, StartSuccessor):
                assert self.coming is None and not self.is_leaving, "two steps at a time"
                self.coming = action.config
            elif isinstance(action, DropSuccessor):
                self.coming = None
            elif isinstance(action, Install):
                assert self.coming is not None
                self.is_leaving = action.number in self.places
                self.places[action.number], self.coming = self.coming, None
            elif isinstance(action, Remove):
                del self.places[action.number]
                self.is_leaving = True
            else:
                self.end = action
            self.least = min(self.least, len(self.places))


@given(old=configs, new=configs, fails_at=st.integers(0, 12), all_anew=st.booleans())
def test_it_ends_with_the_new_workers_or_the_old_ones_and_never_with_fewer(
    old: dict[int, str], new: dict[int, str], fails_at: int, all_anew: bool
) -> None:
    world = World(old)
    change = Replacement(steps_between(old, new, all_anew=all_anew), 30.0)
    world.act(change.begin(0.0))
    starts, has_failed = 0, False
    while world.end is None:
        if world.is_leaving:
            world.is_leaving = False
            world.act(change.on_left(0.0))
        elif starts == fails_at and not has_failed:
            has_failed = True
            world.act(change.on_failed("no memory", 0.0))
        else:
            starts += 1
            world.act(change.on_ready(0.0))
    assert world.places == (old if has_failed else new)
    assert world.end.cause == ("no memory" if has_failed else None)
    assert world.least >= min(len(old), len(new))
