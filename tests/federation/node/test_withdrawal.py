"""One patient withdraws: nothing of the patient remains at the site, nothing comes back, and no server learns who."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from federation.cli.main import app
from federation.gateway import task_exchange, task_intake
from federation.ledger.chain import ledger_file, read_lines
from federation.node.withdrawal import withdraw
from models.refusal import Refusal
from pipeline.cohort.store import Cohort
from pipeline.site.folder import Site
from tests.federation.gateway.fake_server import Bench, Server
from tests.federation.gateway.messages import model, site_of_thirty, train_here
from tests.federation.gateway.test_memory import EMBED, TEST, ask
from tests.federation.gateway.test_questions import SCHEMA, figures
from tests.federation.gateway.test_task_exchange import schema, task_content, wait_until_idle  # noqa: F401
from tests.helpers.own import CLEAN, Own

RNG = np.random.default_rng(12)
GONE = CLEAN[1]


@pytest.fixture
def own(small_hospital: Path, make_site: Callable[[Path, Path], Site], tmp_path: Path, in_this_process: None) -> Own:
    """A hospital of three patients, whose cohort has been made."""
    folder = tmp_path / "hospital"
    (folder / "ct").mkdir(parents=True)
    for name in ("laboratory.csv", "outcomes.csv", "site.toml"):
        shutil.copy(small_hospital / name, folder)
    own = Own(small_hospital, folder, make_site(tmp_path / "site", folder))
    own.add(*CLEAN[:3])
    # A second series of the patient, which is examined and not used.
    shutil.copytree(folder / "ct" / GONE, folder / "ct" / "again", dirs_exist_ok=True)
    own.ingest()
    return own


def traces(site: Site, *words: str) -> set[str]:
    """Return the files below the site whose name or content has one of the words."""
    files = [path for path in site.folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(site.folder))
        for path in files
        if any(word in path.name or word.encode() in path.read_bytes() for word in words)
    }


@pytest.mark.slow
def test_nothing_of_a_withdrawn_patient_remains(own: Own) -> None:
    site, pseudonym = own.site, own.site.pseudonym(GONE)
    with Cohort(site) as cohort:
        before = cohort.patients()
        (tensor,) = (patient.tensor for patient in before if patient.pseudonym == pseudonym)
    assert traces(site, pseudonym, tensor) == {
        *("cohort/cohort.sqlite", "cohort/cohort.csv", "cohort/refusals.csv", f"cohort/tensors/{tensor}")
    }
    done = withdraw(site, [GONE])
    assert (done.new, done.in_cohort, done.series) == (1, 1, 0)
    assert traces(site, pseudonym, tensor, GONE) == set()
    with Cohort(site) as cohort:
        assert cohort.patients() == [patient for patient in before if patient.pseudonym != pseudonym]


@pytest.mark.slow
def test_nothing_of_a_withdrawn_patient_without_labels_remains(own: Own) -> None:
    site, pseudonym = own.site, own.site.pseudonym(GONE)
    own.site.settings.site.unlabelled_patients = True
    rows = (own.folder / "laboratory.csv").read_text().splitlines(keepends=True)
    own.laboratory("".join(row for row in rows if GONE not in row))
    own.ingest()
    with Cohort(site) as cohort:
        before = cohort.patients()
        (gone,) = cohort.unlabelled()
    assert gone.pseudonym == pseudonym
    assert withdraw(site, [GONE]).in_cohort == 1
    assert traces(site, pseudonym, gone.tensor, GONE) == set()
    with Cohort(site) as cohort:
        assert (cohort.patients(), cohort.unlabelled()) == (before, [])


@pytest.mark.slow
def test_withdrawn_patient_is_refused_at_every_later_ingest(own: Own) -> None:
    withdraw(own.site, [GONE])
    for _ in range(2):
        assessment = own.ingest()
        assert {patient.pseudonym for patient in assessment.patients} == {own.site.pseudonym(p) for p in CLEAN[:3:2]}
        assert dict((reason.code, n) for reason, n in assessment.counts)["E_WITHDRAWN"] >= 1
        assert assessment.examined_now == 0
        assert traces(own.site, own.site.pseudonym(GONE), GONE) == set()


@pytest.mark.slow
def test_prepared_scans_are_deleted_although_the_sources_cannot_be_read(own: Own) -> None:
    (own.folder / "ct").rename(own.folder / "away")
    assert withdraw(own.site, [GONE]).in_cohort == 1
    assert traces(own.site, own.site.pseudonym(GONE)) == set()
    (own.folder / "away").rename(own.folder / "ct")
    assert len(own.ingest().patients) == 2


@pytest.mark.slow
def test_ledger_says_that_a_patient_withdrew_and_not_who(own: Own) -> None:
    withdraw(own.site, [GONE, "unknown here"])
    withdraw(own.site, [GONE])  # once more is harmless, and no second withdrawal
    written = list(read_lines(ledger_file(own.site)))
    assert [(line.kind, line.digest, line.bytes) for line in written] == [("patient withdrawn", "", 0)] * 2
    marks = (own.site.folder / "withdrawn.txt").read_text().split()
    assert len(marks) == 2 and marks == sorted(marks)


@pytest.mark.slow
def test_ledger_that_cannot_be_written_stops_the_withdrawal(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    (own.site.folder / "ledger").write_text("no folder")
    with pytest.raises(Refusal, match="E_LEDGER_WRITE"):
        withdraw(own.site, [GONE])
    assert not (own.site.folder / "withdrawn.txt").exists()


@pytest.mark.slow
def test_identifier_is_asked_for_and_never_an_argument(own: Own, tmp_path: Path) -> None:
    runner, folder = CliRunner(), str(own.site.folder)
    assert runner.invoke(app, ["node", "withdraw", folder, GONE]).exit_code == 2
    asked = runner.invoke(app, ["node", "withdraw", folder], input=f"{GONE}\n{GONE}\n")
    assert asked.exit_code == 0
    assert GONE not in asked.output
    (tmp_path / "list").write_text(f"\ufeff {CLEAN[0]} \n\n{GONE}\n", encoding="utf-8")
    listed = runner.invoke(app, ["node", "withdraw", folder, "--file", str(tmp_path / "list")])
    assert listed.exit_code == 0 and CLEAN[0] not in listed.output
    with Cohort(own.site) as cohort:
        assert [patient.pseudonym for patient in cohort.patients()] == [own.site.pseudonym(CLEAN[2])]


# --- what a server learns ---------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path, schema: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:  # noqa: F811
    monkeypatch.setattr(task_intake, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(task_exchange, "SOON_SECONDS", 0.0)
    bench = Bench(site_of_thirty(tmp_path), Server())
    yield bench
    bench.close()


def drop_one(site: Site) -> None:
    """Remove one training patient, as a withdrawal does."""
    with Cohort(site) as cohort:
        rows = cohort.patients()
        gone = next(row for row in rows if row.split == "train")
        cohort.replace([row for row in rows if row != gone], [], [])


def test_server_cannot_subtract_means_of_before_and_after(bench: Bench) -> None:
    """The difference of two means of features, times their numbers, would be the features of the patient who left."""
    train_here(bench.site, SCHEMA, first := model(SCHEMA, RNG))
    assert ask(bench, first, EMBED) == ""
    drop_one(bench.site)
    train_here(bench.site, SCHEMA, second := model(SCHEMA, RNG))
    assert ask(bench, second, EMBED) == "E_COHORT_ALMOST_SAME"
    assert ask(bench, first, EMBED) == ""  # the answer of before, without asking the node


def test_answer_over_the_patients_of_before_does_not_leave_after_the_withdrawal(bench: Bench) -> None:
    """A task that began before the withdrawal ends with a code: it covers one patient too many."""
    train_here(bench.site, SCHEMA, came_in := model(SCHEMA, RNG))
    bench.server.give(task_content(came_in), message_type=TEST)
    with bench.node() as node:
        task = node.fetch()
        assert task is not None
        with Cohort(bench.site) as cohort:
            rows = cohort.patients()
            gone = next(row for row in rows if row.split == "test")
            cohort.replace([row for row in rows if row != gone], [], [])
        node.push(figures(auroc_severe=0.75)(task))
        wait_until_idle(bench)
    assert bench.server.last_reply().has_error()
