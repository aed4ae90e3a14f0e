"""Tests of deliveries that fail: they are shown with what to do, a person sends them again, and no kill loses one."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from federation.cli.clinic import app as clinic_commands
from models.refusal import Refusal
from pipeline.clinic.records import Answer, Target
from pipeline.clinic.results.outbox import Outbox
from pipeline.clinic.review import Proposal, decide
from pipeline.clinic.settings import SETTINGS, Clinic
from pipeline.clinic.store import new_id
from pipeline.scoring.score import Score
from tests.helpers.killed import killed_copies
from tests.helpers.scored_answers import answer_to, series_of
from tests.pipeline.clinic.results.receivers import FhirServer, Receiver
from tests.pipeline.clinic.results.test_messages import PATIENT


@contextmanager
def systems(tmp_path: Path, send: str = "always", ids: str = "client") -> Iterator[tuple[Clinic, Receiver, FhirServer]]:
    """A clinic's folder with settings, and the two systems that it sends to."""
    receiver, server = Receiver(), FhirServer()
    with receiver.running() as port, server.running() as url:
        folder = tmp_path / "clinic"
        folder.mkdir()
        (folder / SETTINGS).write_text(
            f'[results.fhir]\nurl = "{url}"\nsend = "{send}"\nids = "{ids}"\n'
            f'[results.hl7]\nhost = "127.0.0.1"\nport = {port}\nsend = "{send}"\n'
        )
        yield Clinic.open(folder), receiver, server


@pytest.fixture
def answered(scan: Path, score: Score) -> Callable[[Clinic], Answer]:
    """Put an answer into a clinic's store, queued as the worker does."""

    def put(clinic: Clinic) -> Answer:
        made = answer_to(score, series_of(scan), clinic.answers / new_id(), patient=PATIENT)
        with clinic.store() as store:
            store.jobs.add(new_id(), source="upload", asked_by="test")
            job = store.jobs.take()
            assert job is not None
            store.answers.add(job, replace(made, job_id=job.id), deliver=Outbox(clinic).targets_of_new(made))
            return store.answers.get(made.id)

    return put


def deliver(path: Path) -> None:
    """Attempt everything that waits at the clinic whose settings are at `path`, due or not."""
    clinic = Clinic.open(path.parent)
    with clinic.store() as store:
        waiting = store.deliveries.in_state("waiting")
    for each in waiting:
        Outbox(clinic).attempt(each)


def states(clinic: Clinic) -> dict[tuple[Target, bool], tuple[str, str | None]]:
    """State and code of all deliveries, by system and whether a decision is sent."""
    with clinic.store() as store:
        (answer,) = store.answers.newest()
        return {
            (each.target, bool(each.decision_id)): (each.state, each.code) for each in store.deliveries.of(answer.id)
        }


def decided(clinic: Clinic, verdict: Any) -> Answer:
    with clinic.store() as store:
        (seen,) = store.answers.newest()
        proposal = Proposal(verdict, seen.revision, None if verdict == "accepted" else "other")
        targets = Outbox(clinic).targets(seen, verdict)
        return decide(store, seen.id, proposal, by="reader", person="Leser^Anna", targets=targets)


@pytest.mark.slow
def test_kill_at_any_step_loses_nothing_and_doubles_nothing(
    answered: Callable[[Clinic], Answer], tmp_path: Path
) -> None:
    """After a kill before each statement and each call of a socket, the next start delivers what was not delivered.

    A rejection after the kill reaches each system that may have the result, and only these.
    """
    with systems(tmp_path, ids="server") as (clinic, receiver, server):
        answered(clinic)
        copies = killed_copies(f"{__name__}:deliver", clinic.folder / SETTINGS, tmp_path / "killed")
        assert len(copies) > 20
        again = [shutil.copytree(copy.parent, tmp_path / "again" / copy.parent.name) / copy.name for copy in copies]
        (messages,) = receiver.by_control_id.values()
        assert len(messages) == 1, "a repeated message is the same, byte for byte"
        assert len(server.kept) == 6, "a repeated transaction replaces what was there"
        for copy in copies:
            before = {"fhir": len(server.received), "hl7": len(receiver.received)}
            then = Clinic.open(copy.parent)
            unsent = {target for (target, _), (state, _) in states(then).items() if state == "waiting"}
            deliver(copy)
            assert set(states(then).values()) == {("sent", None)}
            after = {"fhir": len(server.received), "hl7": len(receiver.received)}
            assert {target for target in after if after[target] > before[target]} == unsent
        assert len(receiver.received) <= 2 * len(copies) and len(server.received) <= 2 * len(copies)
        assert len(receiver.by_control_id) == 1 and len(server.kept) == 6
        for copy in again:
            then = Clinic.open(copy.parent)
            with then.store() as store:
                (seen,) = store.answers.newest()
                begun = {each.target for each in store.deliveries.of(seen.id) if each.attempts}
            decided(then, "rejected")
            deliver(copy)
            found = states(then)
            assert {target for (target, is_later), each in found.items() if is_later and each[0] == "sent"} == begun
            assert all(found[target, True] == ("dropped", None) for target in {"fhir", "hl7"} - begun)


def test_failed_deliveries_are_shown_with_what_to_do_and_sent_again(
    answered: Callable[[Clinic], Answer], tmp_path: Path
) -> None:
    with systems(tmp_path) as (clinic, receiver, server):
        answer = answered(clinic)
        receiver.code, server.status = "AE", 503
        deliver(clinic.folder / SETTINGS)
        assert states(clinic) == {
            ("fhir", False): ("waiting", "E_FHIR_SILENT"),
            ("hl7", False): ("failed", "E_HL7_REFUSED"),
        }
        told = json.loads(run("status", clinic.folder, "--json"))["deliveries"]
        assert {(each["target"], each["state"], each["code"]) for each in told} == {
            ("fhir", "waiting", "E_FHIR_SILENT"),
            ("hl7", "failed", "E_HL7_REFUSED"),
        }
        assert all("clinic.toml" in each["remedy"] or "docs/results.md" in each["remedy"] for each in told)
        assert {each["answer_id"] for each in told} == {answer.id}
        assert PATIENT.id not in json.dumps(told)
        shown = run("status", clinic.folder)
        assert "E_HL7_REFUSED" in shown and "E_FHIR_SILENT" in shown and PATIENT.id not in shown
        receiver.code, server.status = "AA", 200
        assert json.loads(run("send-again", clinic.folder, "--target", "hl7", "--json")) == {"queued": 1}
        assert json.loads(run("send-again", clinic.folder, "--json")) == {"queued": 1}
        deliver(clinic.folder / SETTINGS)
        assert set(states(clinic).values()) == {("sent", None)}
        assert json.loads(run("status", clinic.folder, "--json"))["deliveries"] == []
        (messages,) = receiver.by_control_id.values()
        assert len(messages) == 1 and len(receiver.received) == 2
        with clinic.store() as store:
            sent = [(each.who, each.output) for each in store.audit.records() if each.action == "send"]
        assert sent == [("command line", {"target": "hl7"}), ("command line", {"target": "fhir"})]


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(clinic_commands, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output if "--json" not in arguments else result.stdout


def test_rejection_that_could_not_be_sent_is_sent_again(answered: Callable[[Clinic], Answer], tmp_path: Path) -> None:
    with systems(tmp_path) as (clinic, receiver, server):
        answered(clinic)
        deliver(clinic.folder / SETTINGS)
        receiver.code = "AE"
        rejected = decided(clinic, "rejected")
        with pytest.raises(Refusal, match="E_NOT_ACCEPTED"):
            Outbox(clinic).put(rejected, "hl7")  # it waits, so that nothing has to be sent again
        deliver(clinic.folder / SETTINGS)
        assert states(clinic)["hl7", True] == ("failed", "E_HL7_REFUSED")
        receiver.code = "AA"
        Outbox(clinic).put(rejected, "hl7")
        deliver(clinic.folder / SETTINGS)
        assert states(clinic)["hl7", True] == ("sent", None)
        assert {each["status"] for each in server.kept.values()} == {"entered-in-error"}


def test_receiver_that_may_have_the_result_gets_the_rejection_also_after_it_was_queued_again(
    answered: Callable[[Clinic], Answer], tmp_path: Path
) -> None:
    """A person queued it again before the rejection; that must not hide that the receiver may have it."""
    with systems(tmp_path) as (clinic, receiver, _):
        answer = answered(clinic)
        receiver.answer = b""  # it stores the message, and its acknowledgement is lost
        deliver(clinic.folder / SETTINGS)
        Outbox(clinic).put(answer, "hl7")
        receiver.answer = None
        decided(clinic, "rejected")
        deliver(clinic.folder / SETTINGS)
        assert states(clinic)["hl7", True] == ("sent", None)
        assert len(receiver.by_control_id) == 2


def test_later_decision_replaces_a_delivery_that_failed(answered: Callable[[Clinic], Answer], tmp_path: Path) -> None:
    with systems(tmp_path) as (clinic, receiver, _):
        answered(clinic)
        receiver.code = "AE"
        deliver(clinic.folder / SETTINGS)
        receiver.code = "AA"
        decided(clinic, "accepted")
        deliver(clinic.folder / SETTINGS)
        assert states(clinic)["hl7", False] == ("dropped", "E_HL7_REFUSED")
        assert states(clinic)["hl7", True] == ("sent", None)
        with clinic.store() as store:
            assert store.deliveries.problems() == []
        assert run("send-again", clinic.folder).strip() == "Queued again: 0."


def test_error_in_the_program_does_not_hold_up_other_deliveries(
    answered: Callable[[Clinic], Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with systems(tmp_path) as (clinic, _, _server):
        answered(clinic)
        text = f"no such {PATIENT.id}"

        def faulty(*_: Any, **__: Any) -> None:
            raise KeyError(text)

        monkeypatch.setattr("pipeline.clinic.results.fhir_report.diagnostic_report", faulty)
        deliver(clinic.folder / SETTINGS)
        assert states(clinic) == {("fhir", False): ("waiting", "E_INTERNAL"), ("hl7", False): ("sent", None)}


@pytest.mark.parametrize("why", ["not set up", "no patient", "not accepted"])
def test_message_that_may_not_be_sent_is_not_queued(
    why: str, answered: Callable[[Clinic], Answer], tmp_path: Path
) -> None:
    with systems(tmp_path, send="accepted") as (clinic, _, _server):
        answer = answered(clinic)
        if why == "not set up":
            clinic.settings.results.hl7 = None
        if why == "no patient":
            answer = replace(answer, patient=None)
        with pytest.raises(Refusal, match="E_NOT_ACCEPTED" if why == "not accepted" else "E_NO_RESULTS"):
            Outbox(clinic).put(answer, "hl7")
        assert states(clinic) == {}
