"""A masked round gives the sum that plaintext aggregation gives, whoever drops out, or says that it is lost."""

import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from federation.secure_aggregation.messages import Confirmations
from federation.secure_aggregation.reply_vector import mean_of
from federation.secure_aggregation.server_round import ServerRound
from federation.secure_aggregation.site_round import SiteRound
from models.refusal import Refusal
from tests.federation.secure_aggregation.rig import NEVER, STEPS, QuestionRig, Rig, plain_mean, play, refused


def expected(rig: Rig, leaves: Mapping[str, str]) -> list[str] | None:
    """The hospitals in the sum; None if the round must be lost."""
    present = [name for name in rig.names if leaves.get(name) not in STEPS[:3]]
    in_step = Counter({step: sum(STEPS.index(leaves.get(n, "reveal")) > at or n not in leaves for n in rig.names)
                       for at, step in enumerate(STEPS)})  # fmt: skip
    return present if min(in_step.values()) >= rig.roster.threshold else None


def check_pattern(folder: Path, leaves: Mapping[str, str], *, restarts: bool = True, make: type[Rig] = Rig) -> None:
    rig = make(folder, 5, weights=5, channels=1, restarts=restarts)
    wanted = expected(rig, leaves)
    try:
        server = play(rig, rig.header(), leaves)
        total = server.unmask()
    except Refusal as refusal:
        assert refusal.code == "E_SECAGG_TOO_FEW"
        assert wanted is None
        return
    assert wanted is not None
    assert np.array_equal(total, rig.plain_sum(wanted))


@pytest.mark.parametrize("count", [3, 5, 10, pytest.param(30, marks=pytest.mark.slow)])
def test_sum_equals_plaintext_aggregation(tmp_path: Path, count: int) -> None:
    rig = Rig(tmp_path, count, weights=2000, channels=20, restarts=count < 10)
    server = play(rig, rig.header())
    total = server.unmask()
    assert np.array_equal(total, rig.plain_sum(rig.names))
    mean, plain = mean_of(total, rig.settings, count), plain_mean(list(rig.replies.values()))
    assert mean.patients == sum(reply.patients for reply in rig.replies.values())
    length = np.linalg.norm(plain["changes"])
    assert np.linalg.norm(mean.changes - plain["changes"]) < 1e-6 * length
    np.testing.assert_allclose(mean.means, plain["means"], atol=1e-8)
    np.testing.assert_allclose(mean.variances, plain["variances"], atol=1e-7)
    for name in rig.settings.figures:
        weighted = sum(reply.patients * reply.figures[name] for reply in rig.replies.values()) / mean.patients
        assert mean.figures[name] == pytest.approx(weighted, abs=1e-7)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("place", range(5))
def test_one_hospital_of_five_may_leave_at_any_step(tmp_path: Path, step: str, place: int) -> None:
    check_pattern(tmp_path, {f"hospital-{place:03}": step})


@pytest.mark.parametrize("step", STEPS)
def test_two_of_five_lose_the_round(tmp_path: Path, step: str) -> None:
    check_pattern(tmp_path, {"hospital-001": step, "hospital-004": step})


@pytest.mark.slow
@pytest.mark.parametrize("make", [Rig, QuestionRig])
def test_every_pattern_of_dropouts_at_five(tmp_path: Path, make: type[Rig]) -> None:
    """Up to the order of hospitals, which the tests above vary: who leaves before which step, or never."""
    for number, steps in enumerate(itertools.combinations_with_replacement((*STEPS, None), 5)):
        leaves = {f"hospital-{(number + at) % 5:03}": step for at, step in enumerate(steps) if step}
        check_pattern(tmp_path / str(number), leaves, restarts=False, make=make)


@pytest.mark.parametrize("count", [3, 4])
def test_smallest_rosters_need_three(tmp_path: Path, count: int) -> None:
    rig = Rig(tmp_path, count)
    assert rig.roster.threshold == 3
    leaves = {rig.names[0]: "upload"}
    if count == 3:
        assert refused(lambda: play(rig, rig.header(), leaves)) == "E_SECAGG_TOO_FEW"
    else:
        assert np.array_equal(play(rig, rig.header(), leaves).unmask(), rig.plain_sum(rig.names[1:]))


def test_two_hospitals_take_part_in_no_masked_round(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 2)
    assert refused(lambda: rig.site(rig.names[0], rig.header())) == "E_SECAGG_ROSTER_SMALL"


def test_round_lost_before_unmasking_can_be_tried_again(tmp_path: Path) -> None:
    """The model stays, and the next attempt has other masks and may have other hospitals."""
    rig = Rig(tmp_path, 5)
    lost = {rig.names[0]: "confirm", rig.names[1]: "confirm"}
    assert refused(lambda: play(rig, rig.header(), lost)) == "E_SECAGG_TOO_FEW"
    assert np.array_equal(play(rig, rig.header(attempt=2)).unmask(), rig.plain_sum(rig.names))
    assert np.array_equal(play(rig, rig.header(2, model=2)).unmask(), rig.plain_sum(rig.names))


def test_repeated_questions_get_the_same_answers(tmp_path: Path) -> None:
    """An answer that was lost on the way is asked for again."""
    rig = Rig(tmp_path, 3)
    header = rig.header()
    first = {name: rig.site(name, header).advertise() for name in rig.names}
    assert first == {name: rig.site(name, header).advertise() for name in rig.names}
    server = play(rig, header)
    for name in rig.names:
        site = rig.site(name, header)
        assert server.advertised is not None and server.uploaded is not None and server.confirmations is not None
        assert site.share(server.advertised) == site.share(server.advertised)
        assert site.confirm(server.uploaded) == site.confirm(server.uploaded)
        assert site.reveal(server.confirmations) == site.reveal(server.confirmations)
        server.reveal(name, site.reveal(server.confirmations))
    assert np.array_equal(server.unmask(), rig.plain_sum(rig.names))


def test_masked_reply_is_open_until_another_run_reveals_the_sum(tmp_path: Path) -> None:
    """Its own sum may be asked for again, because an answer can be lost on the way."""
    rig = Rig(tmp_path, 3)
    left, other = rig.header(run="left"), rig.header(run="other")
    play(rig, left, until="share")
    site = rig.site(rig.names[0], left)
    assert refused(site.check_open) == "E_SECAGG_STEP"
    play(rig, rig.header(attempt=2, run="left"), until="confirm")
    assert refused(rig.site(rig.names[0], left).check_open) == "E_SECAGG_ROUND_OLD"
    assert refused(rig.site(rig.names[0], rig.header(attempt=2, run="left")).check_open) == ""
    play(rig, other)
    assert refused(rig.site(rig.names[0], other).check_open) == ""
    assert refused(rig.site(rig.names[0], rig.header(attempt=2, run="left")).check_open) == "E_SECAGG_MODEL_USED"


@pytest.mark.parametrize("make", [Rig, QuestionRig])
@pytest.mark.parametrize("until", ["upload", "confirm", "reveal"])
def test_killed_server_goes_on(tmp_path: Path, until: str, make: type[Rig]) -> None:
    """After the list of replies is frozen, hospitals may have revealed shares: the sum must not be lost then."""
    rig = make(tmp_path, 5)
    header = rig.header()
    play(rig, header, {rig.names[2]: "upload"}, until=until)
    server = ServerRound.resumed(rig.folder / "server")
    assert server is not None and server.uploaded is not None
    for name in server.uploaded.hospitals:
        server.confirm(name, rig.site(name, header).confirm(server.uploaded))
    server = ServerRound.resumed(rig.folder / "server")
    assert server is not None and server.confirmations is not None and server.uploaded is not None
    for name in server.uploaded.hospitals:
        server.reveal(name, rig.site(name, header).reveal(server.confirmations))
    server = ServerRound.resumed(rig.folder / "server")
    assert server is not None
    assert np.array_equal(server.unmask(), rig.plain_sum(server.uploaded.hospitals))
    server.forget()
    assert ServerRound.resumed(rig.folder / "server") is None


def test_killed_server_before_the_list_of_replies_begins_another_attempt(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 3)
    play(rig, rig.header(), until="share")
    assert ServerRound.resumed(rig.folder / "server") is None
    assert np.array_equal(play(rig, rig.header(attempt=2)).unmask(), rig.plain_sum(rig.names))


@pytest.mark.parametrize(("sites", "code"), [(5, ""), (3, "E_SECAGG_SHARES")])
def test_wrong_shares_of_one_hospital_lose_the_round_only_if_all_are_needed(
    tmp_path: Path, sites: int, code: str
) -> None:
    rig = Rig(tmp_path, sites)
    server = play(rig, rig.header(), NEVER, until="confirm")
    assert server.confirmations is not None
    for name in rig.names:
        shares = rig.site(name, rig.header()).reveal(server.confirmations)
        if name == rig.names[0]:
            shares = shares.model_copy(update={"seeds": dict.fromkeys(shares.seeds, bytes(33))})
        server.reveal(name, shares)
    if code:
        assert refused(server.unmask) == code
    else:
        assert np.array_equal(server.unmask(), rig.plain_sum(rig.names))


@pytest.mark.slow
def test_messages_are_small(tmp_path: Path) -> None:
    """At most 30 kB to and from a hospital of thirty, besides the masked reply."""
    rig = Rig(tmp_path, 30, restarts=False)
    header, name = rig.header(), rig.names[7]
    server = play(rig, header)
    site = rig.site(name, header)
    assert server.advertised is not None and server.uploaded is not None and server.confirmations is not None
    messages = [
        header,
        site.advertise(),
        server.advertised,
        site.share(server.advertised),
        server.shares_for(name),
        server.uploaded,
        site.confirm(server.uploaded),
        server.confirmations,
        site.reveal(server.confirmations),
    ]
    assert sum(len(message.content) for message in messages) < 30_000


@pytest.mark.parametrize("step", ["confirm", "reveal"])
def test_step_of_an_earlier_attempt_that_a_thread_still_does_undoes_no_later_attempt(tmp_path: Path, step: str) -> None:
    """The gateway begins the next round while a thread writes the ledger's line about the one before."""
    rig = Rig(tmp_path, 3, restarts=False)
    name, first, second = rig.names[0], rig.header(1, model=1), rig.header(2, model=2)
    server = play(rig, first, until="upload" if step == "confirm" else "confirm")
    later = Thread(target=lambda: rig.site(name, second).advertise())

    def note(*_: str) -> None:
        if not later.ident:
            later.start()
            later.join(0.5)  # it waits for this step, or is done at once

    earlier = SiteRound(rig.store(name), rig.identities[name], rig.roster, first, note=note)
    if step == "confirm":
        earlier.confirm(server.freeze_uploaded())
    else:
        assert server.confirmations is not None
        earlier.reveal(server.confirmations)
    later.join()
    assert rig.site(name, second).step == 1
    assert refused(lambda: rig.site(name, first).reveal(Confirmations(signatures={}))) == "E_SECAGG_ROUND_OLD"
