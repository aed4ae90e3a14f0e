"""A server that asks again after a restore: the hospital has one patient more, and its gateway has forgotten."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict

from federation.approval.approvals import own_app_sha256
from federation.gateway import task_exchange, task_intake
from federation.gateway.masked_memory import summed
from federation.gateway.memory import Memory, charged, private
from federation.gateway.schema import Schema
from federation.gateway.spool import Spool
from federation.ledger.chain import PASSED, Entry, Ledger, ledger_file
from federation.ledger.restored import accept
from federation.migration.backup import back_up_site, restore_site
from federation.secure_aggregation.store import Store, witness_folder
from models.refusal import Refusal
from pipeline.cohort.store import Cohort, PatientRow
from pipeline.site.folder import Site
from pipeline.training import privacy_budget
from pipeline.training.privacy_budget import ORDERS, PrivateRound
from tests.federation.gateway.fake_server import Bench, Server
from tests.federation.gateway.messages import Model, first_of, model, moments, record_of, train_here
from tests.federation.gateway.test_questions import SCHEMA, figures
from tests.federation.gateway.test_task_exchange import (  # noqa: F401
    lines,
    schema,
    site,
    task_content,
    wait_for_reply,
    wait_until_idle,
    work,
)

RNG = np.random.default_rng(11)
COSTS = json.dumps([0.01 * order for order in ORDERS])
TEST, EMBED = "evaluate.test", "evaluate.embed"


@pytest.fixture
def bench(site: Site, schema: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:  # noqa: F811
    monkeypatch.setattr(task_intake, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(task_exchange, "SOON_SECONDS", 0.0)
    bench = Bench(site, Server())
    yield bench
    bench.close()


def means(task: Message) -> Message:
    records = {name: record_of(arrays) for name, arrays in moments(SCHEMA, RNG).items()}
    return Message(RecordDict({**records, "metrics": MetricRecord({"num-examples": 30})}), reply_to=task)  # type: ignore[arg-type]


def ask(bench: Bench, came_in: Model, kind: str, **config: object) -> str:
    """Ask a question, and return the code of the answer, or "" if figures left."""
    replies = len(bench.server.replies)
    bench.server.give(task_content(came_in, **config), message_type=kind)
    with bench.node() as node:
        if (task := node.fetch()) is not None:
            node.push((means if kind == EMBED else figures(auroc_severe=0.75))(task))
        reply = wait_for_reply(bench.server, replies + 1)
        wait_until_idle(bench)
    return reply.error.reason if reply.has_error() else ""


def one_patient_more(site: Site) -> None:  # noqa: F811
    with Cohort(site) as cohort:
        rows = [*cohort.patients(), PatientRow("newcomer", "train", "new.npy", 71.0, "M", True, True)]
        cohort.replace(rows, [], [])  # type: ignore[arg-type]


def without_folder(gateway: Path, before: Path) -> None:
    shutil.rmtree(gateway)


def with_older_folder(gateway: Path, before: Path) -> None:
    shutil.rmtree(gateway)
    shutil.copytree(before, gateway)


@pytest.mark.parametrize("change", [without_folder, with_older_folder])
def test_question_whose_answer_was_lost_is_refused_for_ever(
    bench: Bench, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    gateway, came_in = bench.site.folder / "gateway", model(SCHEMA, RNG)
    train_here(bench.site, SCHEMA, came_in)
    shutil.copytree(gateway, before := tmp_path / "before")
    assert ask(bench, came_in, TEST, audit=True) == ask(bench, came_in, EMBED) == ""
    bench.stop_gateway()
    change(gateway, before)
    one_patient_more(bench.site)
    for _ in range(2):  # what was rebuilt is rebuilt again, with the same result
        bench.start_gateway()
        train_here(bench.site, SCHEMA, came_in)
        assert ask(bench, came_in, TEST, audit=True) == ask(bench, came_in, TEST, audit=False) == "E_MEMORY_LOST"
        # Over which patients the means were is lost, so no others can be compared with them.
        train_here(bench.site, SCHEMA, other := model(SCHEMA, RNG))
        assert ask(bench, other, EMBED) == "E_MEMORY_LOST"
        bench.stop_gateway()
    bench.start_gateway()


def test_site_restored_from_an_older_backup_answers_nothing_until_accepted(
    site: Site,  # noqa: F811
    schema: object,  # noqa: F811
    tmp_path: Path,
) -> None:
    before, came_in, other = tmp_path / "before", model(SCHEMA, RNG), model(SCHEMA, RNG)
    train_here(site, SCHEMA, came_in)
    bench = Bench(site, Server())
    assert ask(bench, came_in, EMBED) == ""
    back_up_site(site.folder, before)
    assert ask(bench, came_in, TEST, audit=True) == ""  # after the backup: neither ledger nor folder will know it
    bench.close()
    restore_site(before, tmp_path / "again")
    shutil.copytree(site.cohort_folder, tmp_path / "again" / "cohort")
    restored = Site.open(tmp_path / "again")
    one_patient_more(restored)
    bench = Bench(restored, Server())
    try:
        assert ask(bench, came_in, TEST, audit=False) == ask(bench, came_in, "train") == "E_RESTORED"
        accept(ledger_file(restored), "A. and B.: the node was stopped before the backup")
        assert ask(bench, came_in, EMBED) == ""  # the answer that the backup holds, not a new one
        train_here(restored, SCHEMA, other)
        assert ask(bench, other, EMBED) == "E_COHORT_ALMOST_SAME"
        assert lines(bench)[3].kind == "restored: a backup whose ledger has 3 lines"
    finally:
        bench.close()


def test_folder_that_was_copied_by_hand_is_recognised(bench: Bench, site: Site) -> None:  # noqa: F811
    came_in = model(SCHEMA, RNG)
    train_here(site, SCHEMA, came_in)
    shutil.copytree(site.folder, copy := site.folder.with_name("copy"))
    shutil.rmtree(copy / "gateway" / "in")
    assert ask(bench, came_in, TEST) == ""
    bench.stop_gateway()
    before = ledger_file(site).read_bytes()
    assert ask_after_copy(bench, site, came_in) == "E_RESTORED"
    assert ledger_file(site).read_bytes().startswith(before)


def ask_after_copy(bench: Bench, site: Site, came_in: Model) -> str:  # noqa: F811
    """Replace the ledger by a copy, as a backup of files does, and ask the next question."""
    file = ledger_file(site)
    shutil.copyfile(file, file.with_suffix(".copy"))
    file.with_suffix(".copy").replace(file)
    bench.start_gateway()
    return ask(bench, came_in, EMBED)


@pytest.mark.parametrize("note", ["", " ", "two\nlines", "x" * 201])
def test_restore_is_accepted_only_with_a_note_of_one_line(site: Site, note: str) -> None:  # noqa: F811
    with pytest.raises(Refusal, match="E_RESTORE_NOTE"):
        accept(ledger_file(site), note)
    with pytest.raises(Refusal, match="E_NOT_RESTORED"):
        accept(ledger_file(site), "nothing to accept")


def test_rounds_and_private_studies_are_counted_from_the_ledger(site: Site) -> None:  # noqa: F811
    ledger = Ledger(ledger_file(site))
    for kind in ("train", "train.head", "train", "evaluate.test"):
        ledger.append(Entry("run", 1, "in", kind, 1, "", "", "", PASSED))
    ledger.append(Entry("run", 2, "in", "train", 1, "", "", "", "E_ROUNDS_A_DAY"))  # not a round
    ledger.append(Entry("run", 1, "here", *private("trial")[:1], 0, private("trial")[1], "", "", PASSED))
    spool = Spool(site.folder / "gateway")
    Memory(site, spool).rebuild()
    with pytest.raises(Refusal, match="E_ROUNDS_A_DAY"):
        spool.count_round(3, 100)
    spool.count_round(4, 100)
    with pytest.raises(Refusal, match="E_PRIVACY_DOWNGRADE"):
        spool.check_privacy("trial", is_private=False)
    spool.check_privacy("other", is_private=False)
    Memory(site, spool).rebuild()  # the folder knows more rounds than the ledger now
    assert len(json.loads((spool.folder / "rounds.json").read_text())) == 4


def test_sums_that_were_revealed_are_known_from_the_ledger(site: Site) -> None:  # noqa: F811
    kind, digest = summed("first model", "train")
    Ledger(ledger_file(site)).append(Entry("run", 1, "here", kind, 0, digest, "", "", PASSED))
    spool = Spool(site.folder / "gateway")
    Memory(site, spool).rebuild()
    store = Store(spool.folder / "secagg", witness_folder(site.folder))
    assert store.was_revealed("first model", "train")
    assert not store.was_revealed("first model", "evaluate.test") and not store.was_revealed("another", "train")
    store.close()
    shutil.rmtree(witness_folder(site.folder))


def test_private_rounds_are_charged_from_the_ledger(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """With costs of Opacus's kind, which take seconds to compute."""
    monkeypatch.setattr(privacy_budget.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=COSTS))
    planned, ledger = PrivateRound(1.1, 0.05, 40, 1e-5), Ledger(ledger_file(site))
    for _ in range(3):
        ledger.append(Entry("run", 1, "here", *charged(planned)[:1], 0, "", "", "", PASSED))
    privacy_budget.check_and_spend(site, planned, run="run")  # what an older copy of the budget knows
    Memory(site, Spool(site.folder / "gateway")).rebuild()
    spent = privacy_budget.spent_epsilon(site, delta=1e-5)
    shutil.rmtree(site.folder / "privacy")
    Memory(site, Spool(site.folder / "gateway")).rebuild()
    assert privacy_budget.spent_epsilon(site, delta=1e-5) == spent > 0
    (site.folder / "privacy" / "budget.sqlite").write_text("damaged")
    Memory(site, Spool(site.folder / "gateway")).rebuild()  # other studies go on; private rounds are refused


def test_private_round_leaves_the_line_from_which_it_can_be_charged(
    bench: Bench,
    schema: Callable[[Schema], None],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_app_sha256()  # kept from now on: it needs the process that the next line replaces
    monkeypatch.setattr(privacy_budget.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=COSTS))
    schema(replace(SCHEMA, private_round=PrivateRound(1.0, 0.1, 10, 1e-5)))
    bench.server.give(task_content(first_of(SCHEMA), **{"server-round": 1}))
    with bench.node() as node:
        assert node.fetch() is not None
    noted = [line.kind for line in lines(bench) if line.direction == "here"]
    assert noted == ["private study", "private round: noise 1.0, rate 0.1, steps 10"]
