"""The metrics of node and gateway follow the node's state and the ledger, and name no patient."""

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from federation.ledger.chain import PASSED, Entry, Ledger, ledger_file
from federation.ledger.restored import accept, mark_restored
from federation.node import node_metrics
from federation.node.node_metrics import NodeMetrics
from federation.node.state import NodeState, now
from pipeline.cohort.store import Cohort
from pipeline.site.folder import Site
from pipeline.training.privacy_budget import charge_missing, spent_epsilon
from tests.federation.gateway.messages import site_of_thirty


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return site_of_thirty(tmp_path)


@pytest.fixture
def state() -> NodeState:
    return NodeState(pid=os.getpid(), started=now())


def told(metrics: NodeMetrics) -> dict[str, float]:
    return {
        sample.name + "".join(f",{value}" for value in sample.labels.values()): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


def test_metrics_follow_the_state_of_the_node(site: Site, state: NodeState) -> None:
    processes: dict[str, bool] = {}
    metrics = NodeMetrics(site, state, lambda: processes)
    before = told(metrics)
    assert (before["fedthorax_node_connected"], before["fedthorax_node_rounds_total"]) == (0, 0)
    assert before["fedthorax_node_patients"] == 90
    assert not any(name.startswith("fedthorax_node_last_refusal") for name in before)
    assert metrics.ready() == {"processes": False, "connected": False, "restore_accepted": True}
    state.connection, state.rounds, state.doing = "online", 7, "fetching a task"
    state.refused, state.refused_at = "E_DISK", datetime.now().astimezone() - timedelta(hours=1)
    processes |= {"gateway": True, "node": True, "sandbox": False}
    after = told(metrics)
    assert (after["fedthorax_node_connected"], after["fedthorax_node_busy"]) == (1, 1)
    assert after["fedthorax_node_rounds_total"] == 7
    assert after["fedthorax_node_last_refusal_timestamp_seconds,E_DISK"] == state.refused_at.timestamp()
    assert after["fedthorax_node_process_up,sandbox"] == 0
    assert metrics.ready()["processes"] is False


def test_metrics_count_what_was_added_to_the_ledger(site: Site, state: NodeState) -> None:
    metrics, ledger = NodeMetrics(site, state, dict), Ledger(ledger_file(site))
    assert told(metrics)["fedthorax_gateway_ledger_lines"] == 0
    for verdict in (PASSED, PASSED, "E_REPLY_UPDATE"):
        ledger.append(Entry("run", 1, "out", "train", 1, "", "", "", verdict))
    for _ in range(2):  # the same answer, repeated
        ledger.append(Entry("run", 1, "here", "answered: evaluate.test", 0, "a" * 64, "", "", PASSED))
    after = told(metrics)
    assert after["fedthorax_gateway_messages_total,out,passed"] == 2
    assert after["fedthorax_gateway_messages_total,out,E_REPLY_UPDATE"] == 1
    assert (after["fedthorax_gateway_questions"], after["fedthorax_gateway_ledger_lines"]) == (1, 5)
    counted = {name: value for name, value in after.items() if "gateway" in name}
    assert {name: value for name, value in told(metrics).items() if "gateway" in name} == counted
    ledger_file(site).unlink()
    Ledger(ledger_file(site)).append(Entry("run", 1, "in", "train", 1, "", "", "", PASSED))
    assert told(metrics)["fedthorax_gateway_ledger_lines"] == 1


def with_lines(site: Site, count: int) -> Path:
    for number in range(count):
        Ledger(ledger_file(site)).append(Entry("run", number, "out", "train", 1, "", "", "", PASSED))
    return ledger_file(site)


def is_verified(metrics: NodeMetrics) -> bool:
    return told(metrics)["fedthorax_gateway_ledger_verified"] == 1


def test_ledger_is_verified_as_it_grows(site: Site, state: NodeState) -> None:
    metrics = NodeMetrics(site, state, dict)
    assert is_verified(metrics)
    with_lines(site, 2)
    assert is_verified(metrics)
    file = with_lines(site, 2)
    with file.open("ab") as out:
        out.write(b'{"incomplete": ')  # it is being written
    assert is_verified(metrics)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda lines: [lines[0], lines[1].replace(b"passed", b"E_DISK"), lines[2]],
        lambda lines: [lines[0], lines[2]],
        lambda lines: [*lines, lines[1]],
        lambda lines: [*lines, b"no line\n"],
    ],
)
def test_changed_ledger_is_not_verified(
    tamper: Callable[[list[bytes]], list[bytes]], site: Site, state: NodeState
) -> None:
    lines = with_lines(site, 3).read_bytes().splitlines(keepends=True)
    ledger_file(site).write_bytes(b"".join(tamper(lines)))
    metrics = NodeMetrics(site, state, dict)
    assert not is_verified(metrics) and not is_verified(metrics)
    ledger_file(site).write_bytes(b"".join(lines))  # its backup
    assert is_verified(NodeMetrics(site, state, dict))


def test_ledger_that_is_cut_or_rewritten_while_the_node_runs_is_not_verified(
    site: Site, state: NodeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, removed, changed = (NodeMetrics(site, state, dict) for _ in range(3))
    content = with_lines(site, 3).read_bytes()
    assert is_verified(cut) and is_verified(removed) and is_verified(changed)
    ledger_file(site).write_bytes(content.replace(b"passed", b"E_DISK", 1))
    assert is_verified(changed)  # a line that was read is read again a day later
    monkeypatch.setattr(node_metrics, "VERIFY_AGAIN_SECONDS", 0.0)
    assert not is_verified(changed)
    ledger_file(site).write_bytes(b"".join(content.splitlines(keepends=True)[:2]))
    assert not is_verified(cut)  # although what is left is a ledger
    ledger_file(site).unlink()
    assert not is_verified(removed)


def test_privacy_budget_is_told_with_its_limit(site: Site, state: NodeState) -> None:
    metrics = NodeMetrics(site, state, dict)
    limit = site.settings.privacy.max_epsilon
    before = told(metrics)
    assert (before["fedthorax_node_privacy_epsilon"], before["fedthorax_node_privacy_epsilon_limit"]) == (0, limit)
    charge_missing(site, {("run", 2.0, 0.1, 10): 1})
    spent = told(metrics)["fedthorax_node_privacy_epsilon"]
    assert 0 < spent == spent_epsilon(site, delta=site.settings.privacy.max_delta)
    (site.folder / "privacy" / "budget.sqlite").write_bytes(b"damaged " * 999)
    assert "fedthorax_node_privacy_epsilon" not in told(metrics)


def test_restored_node_is_not_ready_until_the_hospital_accepts(site: Site, state: NodeState) -> None:
    metrics = NodeMetrics(site, state, dict)
    mark_restored(ledger_file(site), "a backup")
    assert metrics.ready()["restore_accepted"] is False
    assert told(metrics)["fedthorax_gateway_restored"] == 1
    accept(ledger_file(site), "by A.")
    assert metrics.ready()["restore_accepted"] is True


def test_metrics_name_no_patient_and_none_of_the_apps_words(site: Site, state: NodeState) -> None:
    state.doing = 'the app says: "DOE^JOHN"'
    registry = CollectorRegistry()
    registry.register(NodeMetrics(site, state, dict))
    text = generate_latest(registry).decode()
    with Cohort(site) as cohort:
        words = [word for patient in cohort.patients() for word in (patient.pseudonym, patient.tensor)]
    assert words and not any(word in text for word in [*words, "DOE", str(site.folder)])
