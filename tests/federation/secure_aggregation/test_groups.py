"""Groups of hospitals: who is in which one, and attacks of a server that mixes them or asks a group again."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from federation.secure_aggregation.groups import groups_of, own_group
from federation.secure_aggregation.messages import Advertised, Header, Uploaded
from federation.secure_aggregation.roster import Member, Roster
from federation.secure_aggregation.server_round import ServerRound
from federation.secure_aggregation.site_round import Limits, SiteRound
from models.refusal import Refusal
from tests.federation.secure_aggregation.rig import QuestionRig, Rig, play, refused


def roster_of(count: int, salt: int = 0) -> Roster:
    return Roster(members=tuple(Member(name=f"h-{n:03}", key=bytes([n, salt, *range(30)])) for n in range(count)))


# --- who is in which group --------------------------------------------------------------------------------


@pytest.mark.parametrize(("members", "count"), [(9, 3), (10, 3), (11, 3), (15, 3), (15, 5), (17, 5), (100, 33)])
def test_every_hospital_is_in_one_group_and_groups_are_alike_in_size(members: int, count: int) -> None:
    roster = roster_of(members)
    groups = groups_of(roster, count)
    assert sorted(name for group in groups for name in group.by_name) == list(roster.by_name)
    sizes = [len(group.members) for group in groups]
    assert len(groups) == count and min(sizes) >= 3 and max(sizes) - min(sizes) <= 1
    assert all(group.by_name[name] == roster.by_name[name] for group in groups for name in group.by_name)


def test_no_groups_are_one_group_of_all() -> None:
    assert groups_of(roster_of(4), 0) == (roster_of(4),)


def test_groups_depend_on_the_approved_list_alone() -> None:
    """A restarted gateway, another hospital and another run compute the same groups."""
    roster = roster_of(9)
    again = Roster.parse(roster.content)
    assert groups_of(again, 3) == groups_of(roster, 3)
    dealt = {tuple(tuple(g.by_name) for g in groups_of(roster_of(9, salt), 3)) for salt in range(20)}
    assert len(dealt) > 15, "other keys give other groups"


def test_groups_of_fewer_than_three_are_refused() -> None:
    assert refused(lambda: groups_of(roster_of(8), 3)) == "E_SECAGG_ROSTER_SMALL"
    assert refused(lambda: own_group(roster_of(9), 3, bytes(32))) == "E_SECAGG_MEMBER"


# --- attacks ----------------------------------------------------------------------------------------------


@dataclass
class GroupedRig(Rig):
    """Hospitals of which each approved the whole list, and takes part in the sums of its own group of `groups`."""

    groups: int = 3
    everybody: Roster = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.everybody = self.roster

    def use(self, place: int) -> Roster:
        """Play the rounds of this group from now on."""
        self.roster = groups_of(self.everybody, self.groups)[place]
        self.names = list(self.roster.by_name)
        self.settings = self.settings.model_copy(update={"sites": len(self.names)})
        return self.roster

    def site(self, name: str, header: Header) -> SiteRound:
        """The gateway of a hospital, which computes its own group."""
        own = own_group(self.everybody, self.groups, self.identities[name].public)
        return SiteRound(self.store(name), self.identities[name], own, header, self.limits, self.noted)


@pytest.fixture
def rig(tmp_path: Path) -> GroupedRig:
    return GroupedRig(tmp_path, 9)


def test_sum_of_each_group_is_that_of_its_hospitals(rig: GroupedRig) -> None:
    for place in range(3):
        group = rig.use(place)
        server = play(rig, rig.header())
        assert server.uploaded == Uploaded(hospitals=tuple(group.by_name))
        np.testing.assert_array_equal(server.unmask(), rig.plain_sum(rig.names))


def test_going_over_from_the_group_to_all_hospitals_is_a_change_in_each_run(tmp_path: Path) -> None:
    """Although no hospital drops out: `federation.runs.site_demand` warns before too many runs of a study."""
    rig = GroupedRig(tmp_path, 9, limits=Limits(max_changes=1))
    everybody = QuestionRig(tmp_path, 9, limits=rig.limits, stores=rig.stores)
    for number, code in ((1, ""), (2, "E_SECAGG_CHANGES")):
        for place in range(rig.groups):
            rig.use(place)
            play(rig, rig.header(1, model=number, run=f"covid-{number}"))
        question = everybody.header(4, model=number, run=f"covid-{number}")
        assert refused(lambda header=question: play(everybody, header)) == code


def test_header_of_another_group_is_refused(rig: GroupedRig) -> None:
    outsider = next(iter(rig.use(1).by_name))
    rig.use(0)
    header = rig.header()
    assert refused(lambda: rig.site(outsider, header)) == "E_SECAGG_ROSTER"
    everybody = header.model_copy(update={"roster": rig.everybody.digest})
    assert refused(lambda: rig.site(rig.names[0], everybody)) == "E_SECAGG_ROSTER"


def test_group_with_a_hospital_of_another_one_is_refused_by_all(rig: GroupedRig) -> None:
    """Two sums that share all hospitals but one would show the difference of two updates."""
    first, second = (groups_of(rig.everybody, 3)[place] for place in (0, 1))
    mixed = sorted([*first.members[:2], second.members[0]], key=lambda member: member.name)
    rig.use(0)
    header = rig.header().model_copy(update={"roster": Roster(members=tuple(mixed)).digest})
    assert {refused(lambda m=m: rig.site(m.name, header)) for m in mixed} == {"E_SECAGG_ROSTER"}


def test_hospital_in_two_groups_at_once_is_refused_by_the_others(rig: GroupedRig) -> None:
    """The server lists a hospital's keys of its own group among those of another one, also under a false name."""
    second = rig.use(1)
    stranger = rig.site(rig.names[0], rig.header()).advertise()
    first = rig.use(0)
    header = rig.header()
    own = [rig.site(name, header).advertise() for name in first.by_name]
    added = sorted([*own[:2], stranger], key=lambda each: each.name)
    renamed = sorted([*own[:2], stranger.model_copy(update={"name": own[2].name})], key=lambda each: each.name)
    asked = rig.site(own[0].name, header)
    assert stranger.name in second.by_name
    assert refused(lambda: asked.share(Advertised(hospitals=tuple(added)))) == "E_SECAGG_MEMBER"
    assert refused(lambda: asked.share(Advertised(hospitals=tuple(renamed)))) == "E_SECAGG_SIGNATURE"


def test_messages_of_two_groups_cannot_be_exchanged(rig: GroupedRig) -> None:
    """Neither replies nor shares of one group are taken in another."""
    rig.use(0)
    server = play(rig, rig.header(), until="share")
    name = rig.names[0]
    rig.use(1)
    other = play(rig, rig.header(), until="share")
    words = rig.plain_sum([rig.names[0]])
    assert refused(lambda: other.upload(name, words)) == "E_SECAGG_MEMBER"
    assert refused(lambda: rig.site(rig.names[0], rig.header()).mask(server.shares_for(name))) == "E_SECAGG_MEMBER"


@pytest.mark.slow
def test_groups_stay_the_same_after_restarts_and_in_other_runs(rig: GroupedRig) -> None:
    """A server that restarts, or begins other runs, cannot deal the hospitals out anew."""
    for number in range(1, 4):
        group = rig.use(0)
        header = rig.header(number, model=number, run=f"covid-{number}")
        play(rig, header)  # each gateway opens its state anew at each step
        for again in range(1, 4):
            for name in group.by_name:
                other = header.model_copy(update={"attempt": 1 + again, "run": f"other-{again}", "model": "f" * 64})
                assert own_group(rig.everybody, 3, rig.identities[name].public) == group
                rig.site(name, other)


def test_group_is_not_asked_again_with_one_hospital_less(tmp_path: Path) -> None:
    rig = GroupedRig(tmp_path, 15)
    group = rig.use(0)
    assert len(group.members) == 5 and group.threshold == 4
    play(rig, rig.header())
    again = rig.header(attempt=2)
    assert {refused(lambda name=name: rig.site(name, again).advertise()) for name in rig.names} == {
        "E_SECAGG_MODEL_USED"
    }


def test_group_of_three_has_no_sum_of_two(rig: GroupedRig) -> None:
    rig.use(0)
    with pytest.raises(Refusal, match="E_SECAGG_TOO_FEW"):
        play(rig, rig.header(), {rig.names[0]: "upload"})


def test_model_of_a_group_is_not_summed_over_all_hospitals_too(rig: GroupedRig) -> None:
    """The sum over all less those of the other groups would be the group's with other hospitals in it."""
    rig.use(0)
    play(rig, rig.header())
    header = rig.header(run="covid-2").model_copy(update={"roster": rig.everybody.digest})
    for name in rig.names:
        whole = SiteRound(rig.store(name), rig.identities[name], rig.everybody, header)
        assert refused(whole.advertise) == "E_SECAGG_MODEL_USED"


def test_hospital_that_wants_larger_sums_refuses_small_groups(rig: GroupedRig) -> None:
    rig.limits = Limits(min_peers=4)
    rig.use(0)
    assert refused(lambda: rig.site(rig.names[0], rig.header())) == "E_SECAGG_ROSTER_SMALL"


def test_server_round_of_a_group_refuses_other_hospitals(rig: GroupedRig) -> None:
    outsider = rig.use(1).members[0].name
    message = rig.site(outsider, rig.header()).advertise()
    group = rig.use(0)
    server = ServerRound(group, rig.header(), rig.folder / "server", words=rig.settings.words)
    assert refused(lambda: server.advertise(outsider, message)) == "E_SECAGG_MEMBER"
