"""A masked round in groups through the real gateway: it takes part in the sum of its own group, and in no other."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from federation.approval.peers import PeerApprovals, identity_file
from federation.gateway import admission, task_exchange, task_intake
from federation.protocol.flat_weights import WEIGHTS
from federation.protocol.masked_replies import MASKED, WORDS
from federation.secure_aggregation.groups import groups_of, own_group
from federation.secure_aggregation.keys import Identity
from federation.secure_aggregation.reply_vector import mean_of
from federation.secure_aggregation.roster import Member, Roster
from federation.secure_aggregation.store import Store
from pipeline.site.folder import Site
from tests.federation.gateway.fake_server import Bench
from tests.federation.gateway.messages import EveryStudy, arrays_of, first_of, train_here, trained
from tests.federation.gateway.test_masked_rounds import (
    CAME_IN,
    RNG,
    SCHEMA,
    STEPS,
    STUDY,
    MaskedServer,
    Study,
    refused,
    short,
    site,
    wait_for,
)

__all__ = ["site"]
GROUPED = replace(SCHEMA, groups=3)
OTHERS = [f"hospital-{number}" for number in range(1, 9)]


@dataclass
class GroupedStudy(Study):
    """The gateway's site and eight hospitals in three groups; the two in the site's own group play their part."""

    def __post_init__(self) -> None:
        super().__post_init__()
        folder = self.site.folder.parent
        identities = {name: Identity.kept(folder / name) for name in OTHERS}
        own = Identity.kept(identity_file(self.site)).public
        keys = {"north": own} | {name: key.public for name, key in identities.items()}
        self.everybody = Roster(members=tuple(Member(name=name, key=keys[name]) for name in sorted(keys)))
        self.roster = own_group(self.everybody, 3, own)
        self.others = {name: identities[name] for name in self.roster.by_name if name != "north"}
        self.stores = {name: Store(folder / f"{name}-state", folder / f"{name}-witness") for name in self.others}

    def approve(self, roster: Roster | None = None) -> None:
        """Approve the list of all hospitals; the gateway computes its group."""
        PeerApprovals(self.site).approve(roster or self.everybody, by="a test")


@pytest.fixture
def study(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[GroupedStudy]:
    train_here(site, GROUPED, CAME_IN)
    monkeypatch.setattr(task_intake, "schema_of", lambda *_: GROUPED)
    monkeypatch.setattr(task_intake, "names_by_digest", lambda folder: EveryStudy())
    monkeypatch.setattr(admission, "first_model_of", lambda *_: arrays_of(first_of(SCHEMA)))
    monkeypatch.setattr(task_exchange, "SOON_SECONDS", 0.0)
    server = MaskedServer(study=STUDY)
    bench = Bench(site, server)
    yield GroupedStudy(site, bench, server)
    bench.close()


def test_gateway_takes_part_in_the_sum_of_its_own_group(study: GroupedStudy) -> None:
    """It is restarted before the last steps, and still knows its group."""
    study.approve()
    study.open()
    out = short(trained(CAME_IN, RNG, STEPS))
    reply = study.work(out)
    study.bench.stop_gateway()
    study.bench.start_gateway()
    shared = study.server.round
    assert shared is not None
    shared.upload("north", reply.content.array_records[MASKED][WORDS].numpy())
    wait_for(lambda: shared.replies == 3)  # the other two reply in threads
    total, present = shared.unmask(60)
    assert present == tuple(study.roster.by_name) and len(present) == 3
    mean = mean_of(total, study.settings, 3)
    update = out["arrays"][WEIGHTS].astype(np.float64) - CAME_IN["arrays"][WEIGHTS]
    np.testing.assert_allclose(mean.changes, 30 / 130 * update, atol=1e-5)


@pytest.mark.parametrize("which", ["another group", "all hospitals"])
def test_round_of_other_hospitals_is_refused(study: GroupedStudy, which: str) -> None:
    study.approve()
    others = next(group for group in groups_of(study.everybody, 3) if group != study.roster)
    roster = others if which == "another group" else study.everybody
    study.open(roster=roster.digest)
    assert refused(study) == "E_SECAGG_ROSTER"


def test_list_that_is_too_short_for_the_groups_is_refused(study: GroupedStudy) -> None:
    study.approve(
        Roster(members=tuple(m for m in study.everybody.members if m.name != study.everybody.members[0].name))
    )
    study.open()
    assert refused(study) == "E_SECAGG_ROSTER_SMALL"
