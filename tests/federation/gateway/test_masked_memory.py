"""A gateway's folder that is older than its ledger, and a server that asks for another sum over other hospitals.

The other hospitals help the server: they forget what they have signed, and let the hospitals change as often as it
likes.
"""

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from federation.approval.peers import PeerApprovals
from federation.gateway.masked_memory import summed
from federation.gateway.memory import Memory
from federation.gateway.spool import Spool
from federation.ledger.chain import PASSED, Entry, Ledger, ledger_file
from federation.secure_aggregation.groups import own_group
from federation.secure_aggregation.messages import NOTHING, TRAIN, Header, Uploaded, hospitals_digest
from federation.secure_aggregation.server_round import ServerRound
from federation.secure_aggregation.site_round import Limits, SiteRound
from federation.secure_aggregation.store import Attempt, Store, witness_folder
from pipeline.site.folder import Site, init_site, site_settings
from tests.federation.secure_aggregation.rig import QuestionRig, Rig, digest, play, refused

ALL = 0b111


@dataclass
class Honest(Rig):
    """The first hospital has a ledger, from which it completes its folder when it starts; the others forget."""

    changes: int = 6
    here: Site = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.here = init_site(self.folder / "north", site_settings(None, name="north"))
        PeerApprovals(self.here).approve(self.roster, by="a test")
        Memory(self.here, Spool(self.gateway)).rebuild()

    @property
    def gateway(self) -> Path:
        return self.here.folder / "gateway"

    def store(self, name: str) -> Store:
        if name != self.names[0]:
            return super().store(name)
        if name not in self.stores:
            self.stores[name] = Store(self.gateway / "secagg", witness_folder(self.here.folder))
        return self.stores[name]

    def site(self, name: str, header: Header) -> SiteRound:
        limits = Limits(max_changes=self.changes if name == self.names[0] else 1000)

        def note(text: str, about: str = header.digest) -> None:
            if name == self.names[0]:
                entry = Entry(header.run, header.round, "here", f"masked: {text}", 0, about, "", "", PASSED)
                Ledger(ledger_file(self.here)).append(entry)

        return SiteRound(self.store(name), self.identities[name], self.roster, header, limits, note)

    def play(self, header: Header, *, without: int | None = None, until: str = "reveal") -> str:
        """Play a round without one of the hospitals; return the code of the refusal."""
        for name in self.names[1:]:
            self.forget(name)
        left = {} if without is None else {self.names[without]: "advertise"}
        code = refused(lambda: play(self, header, left, until=until))
        if not code and until == "reveal":  # as the gateway notes it before its shares leave
            kind, about = summed(header.model, header.kind)
            Ledger(ledger_file(self.here)).append(
                Entry(header.run, header.round, "here", kind, 0, about, "", "", PASSED)
            )
        return code

    def forget(self, name: str) -> None:
        if name in self.stores:
            self.stores.pop(name).close()
        for folder in ("state", "witness"):
            shutil.rmtree(self.folder / name / folder, ignore_errors=True)

    def back_up(self) -> Path:
        self.stop()
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.gateway, copy)
        return copy

    def put_back(self, copy: Path | None) -> None:
        """Replace the gateway's folder by a copy, or by nothing, and start the gateway."""
        self.stop()
        shutil.rmtree(self.gateway)
        if copy is not None:
            shutil.copytree(copy, self.gateway)
        self.start()

    def start(self) -> None:
        for _ in range(2):  # what was rebuilt is rebuilt again, with the same result
            Memory(self.here, Spool(self.gateway)).rebuild()

    def stop(self) -> None:
        if self.names[0] in self.stores:
            self.stores.pop(self.names[0]).close()


@dataclass
class HonestWithQuestions(Honest, QuestionRig):
    """The same with questions about a model."""


@pytest.fixture(params=["older", "none"])
def older(request: pytest.FixtureRequest) -> bool:
    """Whether there is an older copy of the folder, or nothing."""
    return request.param == "older"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Honest]:
    rig = Honest(tmp_path, 5)
    yield rig
    rig.stop()
    shutil.rmtree(witness_folder(rig.here.folder), ignore_errors=True)


@pytest.fixture
def questions(tmp_path: Path) -> Iterator[HonestWithQuestions]:
    rig = HonestWithQuestions(tmp_path, 5)
    yield rig
    rig.stop()
    shutil.rmtree(witness_folder(rig.here.folder), ignore_errors=True)


# --- how often the hospitals changed ----------------------------------------------------------------------


def test_changes_of_the_sum_are_counted_over_an_older_folder(rig: Honest, older: bool) -> None:
    rig.changes = 2
    assert rig.play(rig.header(1, model=1)) == ""
    copy = rig.back_up()
    assert rig.play(rig.header(2, model=2), without=1) == ""
    assert rig.play(rig.header(3, model=3), without=2) == ""
    rig.put_back(copy if older else None)
    assert rig.play(rig.header(4, model=4), without=3) == "E_SECAGG_CHANGES"
    assert rig.play(rig.header(5, model=5), without=2) == "", "the same hospitals as in the last sum"


def test_going_back_to_the_hospitals_of_the_older_folder_is_a_change(rig: Honest, older: bool) -> None:
    rig.changes = 1
    assert rig.play(rig.header(1, model=1)) == ""
    copy = rig.back_up()
    assert rig.play(rig.header(2, model=2), without=1) == ""
    rig.put_back(copy if older else None)
    assert rig.play(rig.header(3, model=3)) == "E_SECAGG_CHANGES"


def test_change_that_was_signed_and_not_revealed_counts(rig: Honest, older: bool) -> None:
    rig.changes = 1
    copy = rig.back_up()
    assert rig.play(rig.header(1, model=1), without=1, until="confirm") == ""
    rig.put_back(copy if older else None)
    assert rig.play(rig.header(2, model=2), without=2) == "E_SECAGG_CHANGES"


def test_changes_in_all_runs_of_a_study_count_and_those_of_another_study_do_not(rig: Honest, older: bool) -> None:
    rig.changes = 1
    copy = rig.back_up()
    assert rig.play(rig.header(1, model=1), without=1) == ""
    rig.put_back(copy if older else None)
    assert rig.play(rig.header(1, model=2, run="covid-2"), without=2) == "E_SECAGG_CHANGES"
    other = rig.header(1, model=3, run="covid-3").model_copy(update={"study": digest(70)})
    assert rig.play(other, without=2) == ""


def test_folder_that_knows_everything_is_left_as_it_is(rig: Honest) -> None:
    """A round that is under way when the gateway starts again goes on."""
    rig.changes = 1
    assert rig.play(rig.header(1, model=1), without=1) == ""
    header = rig.header(2, model=2)
    for name in rig.names[1:]:
        rig.forget(name)
    server = play(rig, header, {rig.names[1]: "advertise"}, until="upload")
    rig.stop()
    rig.start()
    uploaded = server.freeze_uploaded()
    assert refused(lambda: rig.site(rig.names[0], header).confirm(uploaded)) == ""


def test_gateway_killed_between_the_ledger_and_its_folder_goes_on(rig: Honest) -> None:
    """The change counts once, and the list that it was about to sign is signed."""
    rig.changes = 1
    header = rig.header(1, model=1)
    server = play(rig, header, {rig.names[1]: "advertise"}, until="upload")
    copy = rig.back_up()
    uploaded = server.freeze_uploaded()
    rig.site(rig.names[0], header).confirm(uploaded)
    rig.put_back(copy)
    witness = witness_folder(rig.here.folder) / "secagg.json"
    witness.write_text(witness.read_text().replace(", 4]", ", 3]"))
    assert refused(lambda: rig.site(rig.names[0], header).confirm(uploaded)) == ""
    assert last(rig).changes == 1


def last(rig: Honest) -> Attempt:
    found = rig.store(rig.names[0]).last("covid-1")
    assert found is not None
    return found


def test_earlier_round_than_the_ledger_names_is_not_begun_again(rig: Honest, older: bool) -> None:
    copy = rig.back_up()
    assert rig.play(rig.header(3, model=1)) == ""
    rig.put_back(copy if older else None)
    assert rig.play(rig.header(2, model=2)) == "E_SECAGG_ROUND_OLD"
    assert rig.play(rig.header(3, 2, model=3)) == ""


# --- over which hospitals figures and answers were summed -------------------------------------------------


def test_answers_are_not_summed_over_other_hospitals_after_an_older_folder(
    questions: HonestWithQuestions, older: bool
) -> None:
    copy = questions.back_up()
    assert questions.play(questions.header(model=1)) == ""
    questions.put_back(copy if older else None)
    assert questions.play(questions.header(model=2, run="covid-2"), without=1) == "E_SECAGG_NOT_SAME"
    assert questions.play(questions.header(model=2, run="covid-3")) == ""
    assert questions.play(questions.header(model=3, run="covid-4", kind="evaluate.calibrate"), without=1) == ""


def test_answers_that_were_signed_and_not_revealed_count(questions: HonestWithQuestions) -> None:
    assert questions.play(questions.header(model=1), until="confirm") == ""
    questions.put_back(None)
    assert questions.play(questions.header(model=2, run="covid-2"), without=1) == "E_SECAGG_NOT_SAME"


def signed(rig: Honest, header: Header, present: list[str]) -> int:
    """Let these hospitals sign a round of training to which all bring all figures; return what the first one kept."""
    for name in rig.names[1:]:
        rig.forget(name)
    server: ServerRound = rig.server(header)
    for name in present:
        server.advertise(name, rig.site(name, header).advertise(ALL))
    advertised = server.freeze_advertised()
    for name in present:
        server.share(name, rig.site(name, header).share(advertised))
    server.freeze_sharing()
    ours = rig.site(rig.names[0], header)
    ours.mask(server.shares_for(rig.names[0]))
    ours.confirm(Uploaded(hospitals=tuple(present)))
    return ours.kept


def test_figures_of_rounds_are_not_summed_over_other_hospitals_after_an_older_folder(rig: Honest, older: bool) -> None:
    copy = rig.back_up()
    assert signed(rig, rig.header(1, model=1), rig.names) == ALL
    rig.put_back(copy if older else None)
    assert signed(rig, rig.header(2, model=2), [rig.names[0], *rig.names[2:]]) == 0
    rig.put_back(None)
    assert signed(rig, rig.header(3, model=3), rig.names) == ALL, "the sum without figures does not count"


# --- ledgers of earlier versions, which name no hospitals -------------------------------------------------


def earlier_lines(rig: Honest, header: Header, *, changed: bool = False) -> None:
    """What an earlier version wrote about a sum."""
    kind, about = summed(header.model, header.kind)
    told = [("masked: hospitals of the sum changed", header.digest)] if changed else []
    told += [("masked: sum may be revealed", header.digest), (kind, about)]
    for text, of in told:
        Ledger(ledger_file(rig.here)).append(Entry(header.run, header.round, "here", text, 0, of, "", "", PASSED))


def test_answers_over_forgotten_hospitals_are_refused_until_there_is_a_new_list(
    questions: HonestWithQuestions,
) -> None:
    earlier_lines(questions, questions.header(model=1))
    questions.put_back(None)
    assert questions.play(questions.header(model=2, run="covid-2")) == "E_SECAGG_FORGOTTEN"
    assert questions.play(questions.header(model=2, run="covid-3", kind="evaluate.calibrate")) == ""
    known = questions.store(questions.names[0])
    assert known.summed_over(digest(99), "evaluate.test") == NOTHING, "of another list nothing was summed"


def test_figures_of_rounds_over_forgotten_hospitals_are_left_out_of_the_sum(rig: Honest) -> None:
    earlier_lines(rig, rig.header(1, model=1))
    rig.put_back(None)
    assert signed(rig, rig.header(2, model=2), rig.names) == 0


def test_figures_of_a_group_over_forgotten_hospitals_are_left_out_too(tmp_path: Path) -> None:
    rig = Honest(tmp_path, 6)
    identity = rig.identities[rig.names[0]]
    shutil.copy(rig.folder / rig.names[0] / "secagg", rig.here.folder / "keys" / "secagg")
    earlier_lines(rig, rig.header(1, model=1))
    rig.put_back(None)
    with closing(Store(rig.gateway / "secagg", witness_folder(rig.here.folder))) as store:
        group = own_group(rig.roster, 2, identity.public)
        assert store.summed_over(group.digest, TRAIN) not in (NOTHING, hospitals_digest(group.by_name))
        assert store.summed_over(group.digest, "evaluate.test") == NOTHING
    shutil.rmtree(witness_folder(rig.here.folder))


def test_sum_that_the_folder_knows_is_not_forgotten(questions: HonestWithQuestions) -> None:
    """A site that was upgraded: its folder knows the sum and its hospitals, the ledger only the sum."""
    header = questions.header(model=1)
    hospitals = hospitals_digest(questions.names)
    store = questions.store(questions.names[0])
    attempt = Attempt(header.run, header.round, 1, uploaded=hospitals)
    store.begin(attempt)
    store.advance(attempt, revealed=(header.model, header.kind), summed=(header.roster, header.kind))
    earlier_lines(questions, header)
    questions.stop()
    questions.start()
    assert questions.play(questions.header(model=2, run="covid-2")) == ""
    assert questions.play(questions.header(model=3, run="covid-3"), without=1) == "E_SECAGG_NOT_SAME"


@pytest.mark.parametrize("changed", [False, True])
def test_next_sum_counts_as_a_change_if_the_hospitals_of_the_last_one_were_forgotten(
    rig: Honest, changed: bool
) -> None:
    rig.changes = 1 + changed
    earlier_lines(rig, rig.header(1, model=1), changed=changed)
    rig.put_back(None)
    assert rig.play(rig.header(2, model=2)) == ""
    assert rig.play(rig.header(3, model=3), without=1) == "E_SECAGG_CHANGES"
