"""A server that begins masked rounds of many runs, and finishes none of them."""

import os
import time
from pathlib import Path

import pytest

from federation.gateway.unfinished_rounds import LAST_SECONDS, MAX_OTHERS
from federation.secure_aggregation.messages import TRAIN
from federation.secure_aggregation.roster import Member, Roster
from federation.secure_aggregation.site_round import MASKED
from federation.secure_aggregation.store import Store, witness_folder
from tests.federation.gateway.messages import train_here, trained
from tests.federation.gateway.test_masked_rounds import (  # noqa: F401
    CAME_IN,
    RNG,
    SCHEMA,
    STEPS,
    Study,
    finish,
    refused,
    short,
    site,
    study,
    wait_for,
)


def files_of(study: Study) -> list[Path]:  # noqa: F811
    """What the gateway keeps of the rounds whose last steps are not done."""
    return sorted((study.site.folder / "gateway" / "secagg").glob("*.begun"))


def choose(study: Study, run: str) -> None:  # noqa: F811
    study.server.run, study.server.run_id = run, study.server.run_id + 1
    train_here(study.site, SCHEMA, CAME_IN, run=run)


def begin(study: Study, run: str) -> None:  # noqa: F811
    """Let the server begin a round of a run, take the masked reply, and never say whose replies it has."""
    choose(study, run)
    study.open(run=run)
    study.server.stop_at = "uploaded"
    assert not study.work(short(trained(CAME_IN, RNG, STEPS))).has_error()
    study.server.replies.clear()


@pytest.fixture
def crowded(study: Study) -> Study:  # noqa: F811
    """A gateway for which as many runs are unfinished as may be."""
    study.approve()
    for number in range(MAX_OTHERS):
        begin(study, f"run-{number}")
    assert len(files_of(study)) == MAX_OTHERS
    study.server.told.clear()
    return study


def test_run_beside_too_many_unfinished_ones_is_refused(crowded: Study) -> None:
    """Nothing ends them, because the server may still finish each, and must not choose what is forgotten."""
    before = files_of(crowded)
    choose(crowded, "one-more")
    crowded.open(run="one-more")
    assert refused(crowded) == "E_SECAGG_UNFINISHED"
    assert "begin" not in {step for step, _ in crowded.server.told}
    assert files_of(crowded) == before


def test_unfinished_run_may_try_again_and_an_honest_server_ends_the_others(crowded: Study) -> None:
    run = "run-0"
    choose(crowded, run)
    crowded.open(run=run, attempt=2)
    crowded.server.stop_at = ""
    finish(crowded, crowded.work(short(trained(CAME_IN, RNG, STEPS))))
    wait_for(lambda: not files_of(crowded))


def test_rounds_that_nobody_can_finish_make_room_and_stay_in_memory(crowded: Study) -> None:
    """The hospitals have approved another list meanwhile."""
    key = crowded.others["south"].public
    east = Member(name="east", key=bytes([key[0] ^ 1, *key[1:]]))
    crowded.roster = Roster(members=tuple(sorted((*crowded.roster.members, east), key=lambda member: member.name)))
    crowded.settings = crowded.settings.model_copy(update={"sites": 4})
    crowded.approve()
    choose(crowded, "one-more")
    crowded.open(run="one-more")
    crowded.server.stop_at = "uploaded"
    assert not crowded.work(short(trained(CAME_IN, RNG, STEPS))).has_error()
    assert [file.stem for file in files_of(crowded)] == ["one-more", "run-1", "run-2", "run-3"], "the oldest one ended"
    assert crowded.kinds().count("masked: masked round ended: E_SECAGG_ROSTER") == 1
    store = Store(crowded.site.folder / "gateway" / "secagg", witness_folder(crowded.site.folder))
    last = store.last("run-0")
    store.close()
    assert last is not None and (last.round, last.attempt, last.step) == (3, 1, MASKED)


def test_unfinished_round_does_not_wait_longer_after_a_restart(study: Study) -> None:  # noqa: F811
    study.approve()
    begin(study, "run-0")
    (file,) = files_of(study)
    study.bench.stop_gateway()
    ago = time.time() - LAST_SECONDS - 1
    os.utime(file, (ago, ago))
    study.bench.start_gateway()
    wait_for(lambda: not files_of(study))
    assert "masked: masked round ended: E_RUN_OVER" in study.kinds()
    assert not [kind for kind in study.kinds() if kind.startswith(f"masked: sum of {TRAIN}")]
