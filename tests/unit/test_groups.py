"""Who is in which broadcast group, as the broker knows it."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bert_serving.server.groups import Groups


def test_members_are_all_but_the_sender() -> None:
    groups = Groups()
    for route in (b"a", b"b", b"c"):
        assert groups.set(route, ["readers"]) is None
    assert groups.others("readers", b"b") == [b"a", b"c"]
    assert groups.others("readers", b"stranger") == [b"a", b"b", b"c"]
    assert groups.others("nobody", b"a") == []


def test_a_client_is_in_the_groups_that_it_named_last() -> None:
    groups = Groups()
    groups.set(b"a", ["one", "two", "two"])
    groups.set(b"a", ["two", "three"])
    assert (groups.others("one", b""), groups.others("two", b"")) == ([], [b"a"])
    assert (groups.num_groups, groups.num_members) == (2, 2)
    groups.set(b"a", [])
    assert (groups.num_groups, groups.num_members) == (0, 0)


def test_a_client_that_is_gone_is_in_no_group() -> None:
    groups = Groups()
    groups.set(b"a", ["one"])
    groups.remove(b"a")
    groups.remove(b"a")
    assert (groups.num_groups, groups.num_members) == (0, 0)


def test_what_is_too_many_is_refused_whole_and_changes_nothing() -> None:
    groups = Groups(max_groups=2, max_members=2)
    assert groups.set(b"a", ["one", "two"]) is None
    refusal = groups.set(b"b", ["one", "three"])
    assert refusal is not None and "2 groups" in refusal
    assert (groups.num_groups, groups.num_members) == (2, 2)
    assert groups.set(b"b", ["one"]) is None
    refusal = groups.set(b"c", ["one"])
    assert refusal is not None and "'one' has 2 members" in refusal
    assert groups.set(b"b", ["one", "two"]) is None  # who is in stays in


class GroupsMachine(RuleBasedStateMachine):
    """Against the plainest model: for each client, a set of names."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = Groups(max_groups=3, max_members=2)
        self.model: dict[bytes, frozenset[str]] = {}

    @rule(
        route=st.sampled_from([b"a", b"b", b"c"]),
        names=st.lists(st.sampled_from(["one", "two", "three", "four"])),
    )
    def join(self, route: bytes, names: list[str]) -> None:
        if self.groups.set(route, names) is None:
            self.model[route] = frozenset(names)

    @rule(route=st.sampled_from([b"a", b"b", b"c"]))
    def go(self, route: bytes) -> None:
        self.groups.remove(route)
        self.model.pop(route, None)

    @invariant()
    def is_as_the_model_says(self) -> None:
        names = {name for joined in self.model.values() for name in joined}
        assert self.groups.num_groups == len(names)
        assert self.groups.num_members == sum(map(len, self.model.values()))
        for name in names:
            members = {route for route, joined in self.model.items() if name in joined}
            assert set(self.groups.others(name, b"")) == members
            assert len(members) <= 2
        assert len(names) <= 3


TestGroupsMachine = GroupsMachine.TestCase
