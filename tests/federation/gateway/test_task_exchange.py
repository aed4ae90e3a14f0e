"""Task intake and reply checks of the gateway, between Flower's own client and a fake SuperLink."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.run import RunNotRunningException

from federation.approval import fab
from federation.enrolment.certificates import create_node_key
from federation.gateway import admission, proxy, task_exchange, task_intake
from federation.gateway.credentials import NodeKey
from federation.gateway.schema import Schema
from federation.gateway.upstream import MAX_BODY_BYTES
from federation.ledger import reasons
from federation.ledger.chain import Ledger, Line, ledger_file, read_lines
from federation.protocol.flat_weights import WEIGHTS
from federation.protocol.metric_allowlist import MAX_PROBED
from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.training.privacy_budget import PrivateRound
from tests.federation.gateway.fake_server import NODE_ID, RUN_ID, Bench, NodeSide, Server
from tests.federation.gateway.messages import (
    EveryStudy,
    Model,
    arrays_of,
    fine_tuned,
    first_of,
    message,
    model,
    moments,
    record_of,
    schema_for,
    site_of_thirty,
    steps_at,
    train_here,
    trained,
)
from tests.helpers.waiting import eventually

RNG = np.random.default_rng(1)
SCHEMA = schema_for(500, 8)
STEPS = steps_at(SCHEMA, 30)
METRICS = {"train_loss": 0.5, "auroc_severe": 0.75, "num-examples": 30}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return site_of_thirty(tmp_path)


@pytest.fixture
def schema(monkeypatch: pytest.MonkeyPatch) -> Callable[[Schema], None]:
    """Sets the study's schema without importing torch."""

    def set_schema(schema: Schema) -> None:
        monkeypatch.setattr(task_intake, "schema_of", lambda *_: schema)
        monkeypatch.setattr(task_intake, "names_by_digest", lambda folder: EveryStudy())
        monkeypatch.setattr(admission, "first_model_of", lambda *_: arrays_of(first_of(schema)))

    set_schema(SCHEMA)
    return set_schema


@pytest.fixture
def bench(site: Site, schema: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(task_intake, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(task_exchange, "SOON_SECONDS", 0.0)
    bench = Bench(site, Server())
    yield bench
    bench.close()


def task_content(came_in: Model, **config: object) -> RecordDict:
    settings = {"server-round": 3, "ledger-head": "", "ledger-lines": 0, **config}
    records = {name: record_of(arrays) for name, arrays in came_in.items() if arrays}
    return RecordDict({**records, "config": ConfigRecord(settings)})  # type: ignore[arg-type]


def reply_content(out: Model, **metrics: object) -> RecordDict:
    records = {name: record_of(arrays) for name, arrays in out.items() if arrays}
    return RecordDict({**records, "metrics": MetricRecord({**METRICS, **metrics})})  # type: ignore[arg-type]


def wait_for_reply(server: Server, count: int = 1) -> Message:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(server.replies) >= count:
            _, tree = server.replies[-1]
            if tree.object_id in server.received:
                return server.last_reply()
        time.sleep(0.02)
    raise AssertionError(f"{len(server.replies)} replies, and {count} were waited for")


def lines(bench: Bench) -> list[Line]:
    return list(read_lines(ledger_file(bench.site)))


def verdicts(bench: Bench) -> list[tuple[str, str, str]]:
    return [(line.direction, line.kind, line.verdict) for line in lines(bench)]


def is_refused(bench: Bench, code: str) -> Message:
    """The server received only this error code."""
    reply = wait_for_reply(bench.server)
    assert reply.has_error() and not reply.has_content()
    assert (reply.error.code, reply.error.reason) == (1001, code)
    return reply


def work(node: NodeSide, make: Callable[[Message], Message]) -> None:
    task = node.fetch()
    assert task is not None
    node.push(make(task))


def test_valid_training_round_passes_bit_identical(bench: Bench) -> None:
    came_in = first_of(SCHEMA)
    out = trained(came_in, RNG, STEPS)
    given = bench.server.give(task_content(came_in))
    with bench.node() as node:
        task = node.fetch()
        assert task is not None
        for record, arrays in came_in.items():
            for name, array in arrays.items():
                assert task.content.array_records[record][name].numpy().tobytes() == array.tobytes()
        node.push(Message(reply_content(out), reply_to=task))
        reply = wait_for_reply(bench.server)
        for record, arrays in out.items():
            for name, array in arrays.items():
                assert reply.content.array_records[record][name].numpy().tobytes() == array.tobytes()
        assert dict(reply.content["metrics"]) == METRICS  # type: ignore[arg-type]
        assert reply.metadata.reply_to_message_id == given.metadata.message_id
        into, out_of = lines(bench)
        assert (into.direction, into.kind, into.verdict, into.round) == ("in", "train", "passed", 3)
        assert (out_of.direction, out_of.kind, out_of.verdict, out_of.run) == (
            "out",
            "train",
            "passed",
            "trial-0123abcd",
        )
        assert into.digest == given.metadata.message_id
        assert into.policy == out_of.policy != ""
        assert dict(reply.content["ledger"]) == {"head": out_of.sha256, "lines": 2}  # type: ignore[arg-type]
        # The next round sends this ledger head, and its task is accepted.
        bench.server.give(task_content(came_in, **{"ledger-head": out_of.sha256, "ledger-lines": 2}))
        assert eventually(node.fetch) is not None
    assert not any((bench.site.folder / "gateway" / "out").iterdir())


@pytest.mark.parametrize(
    ("kind", "config", "figures"),
    [
        ("evaluate.calibrate", {}, {"slope_severe": 1.1, "variance_slope_severe": 0.1, "distance_mean": 0.05}),
        ("evaluate.test", {"audit": True}, {"auroc_severe": 0.8, "brier_severe": 0.5}),
        ("evaluate.assign", {"probed": 3}, {"assigned_00": 0.5, "assigned_02": 0.5}),
    ],
)
def test_evaluation_reply_contains_only_its_metrics(
    bench: Bench, kind: str, config: dict[str, object], figures: dict[str, float]
) -> None:
    came_in = first_of(SCHEMA)
    train_here(bench.site, SCHEMA, came_in)
    content = task_content(came_in, **{"server-round": 0}, **config)
    if kind == "evaluate.calibrate":
        content["typical"] = record_of(moments(SCHEMA, RNG)["looks"])
    if kind == "evaluate.assign":
        content["probe"] = record_of({"discriminants": np.zeros(MAX_PROBED * (SCHEMA.features + 1), np.float32)})
    bench.server.give(content, message_type=kind)
    metrics = {**figures, "num-examples": 30}
    with bench.node() as node:
        work(node, lambda task: Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=task))
        reply = wait_for_reply(bench.server)
    assert dict(reply.content["metrics"]) == metrics  # type: ignore[arg-type]
    assert set(reply.content) == {"metrics", "ledger"}
    noted = ("here", f"answered: {kind}", "passed")
    assert verdicts(bench) == [("in", kind, "passed"), noted, ("out", kind, "passed")]


@pytest.fixture
def about(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The site information that the gateway computes for a handshake, without torch."""
    found = {"version": version("fedthorax"), "contract": "a" * 64, "golden": "b" * 64, "patients": "20-49"}
    monkeypatch.setattr(task_exchange, "about_site", lambda site, study: found)
    return found


def handshake(bench: Bench) -> None:
    bench.server.give(task_content({}, **{"server-round": 0}), message_type="query.handshake")


def test_handshake_reply_contains_only_site_information(bench: Bench, about: dict[str, str]) -> None:
    handshake(bench)
    with bench.node() as node:
        work(node, lambda task: Message(RecordDict({"site": ConfigRecord(about)}), reply_to=task))  # type: ignore[arg-type]
        reply = wait_for_reply(bench.server)
    assert dict(reply.content["site"]) == about  # type: ignore[arg-type]
    assert set(reply.content) == {"site", "ledger"}
    assert verdicts(bench) == [("in", "query.handshake", "passed"), ("out", "query.handshake", "passed")]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patients", "30"),
        ("patients", "50-99"),
        ("patients", "SMITH^JOHN"),
        ("contract", b"SMITH^JOHN".hex().ljust(64, "0")),
        ("golden", "4401728395566".zfill(64)),
        ("version", "0.0.19451008"),
    ],
)
def test_handshake_with_values_chosen_by_the_app_is_refused(
    bench: Bench, about: dict[str, str], key: str, value: str
) -> None:
    handshake(bench)
    told = {**about, key: value}
    with bench.node() as node:
        work(node, lambda task: Message(RecordDict({"site": ConfigRecord(told)}), reply_to=task))  # type: ignore[arg-type]
        is_refused(bench, "E_HANDSHAKE")
    assert b"SMITH" not in b"".join(bench.server.received.values())


def test_embedding_moments_pass_bit_identical(bench: Bench) -> None:
    came_in = first_of(SCHEMA)
    train_here(bench.site, SCHEMA, came_in)
    bench.server.give(task_content(came_in, **{"server-round": 0}), message_type="evaluate.embed")
    out = moments(SCHEMA, RNG)
    records = {record: record_of(arrays) for record, arrays in out.items()}
    content = RecordDict({**records, "metrics": MetricRecord({"num-examples": 30})})  # type: ignore[arg-type]
    with bench.node() as node:
        work(node, lambda task: Message(content, reply_to=task))
        reply = wait_for_reply(bench.server)
    for record, arrays in out.items():
        for name, array in arrays.items():
            assert reply.content.array_records[record][name].numpy().tobytes() == array.tobytes()
    assert set(reply.content) == {"moments", "looks", "metrics", "ledger"}


def test_embedding_task_is_refused_if_the_site_forbids_it(site: Site, bench: Bench) -> None:
    site.settings.gateway.embedding_statistics = False
    bench.server.give(task_content(model(SCHEMA, RNG), **{"server-round": 0}), message_type="evaluate.embed")
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, "E_EMBEDDINGS")


def test_head_fine_tuning_passes_and_counts_as_a_round(site: Site, bench: Bench) -> None:
    site.settings.gateway.max_rounds_a_day = 1
    came_in = first_of(SCHEMA)
    out = fine_tuned(came_in, SCHEMA, RNG)
    content = reply_content(out)
    content["metrics"] = MetricRecord({"num-examples": 30})
    train_here(site, SCHEMA, came_in)
    with bench.node() as node:
        bench.server.give(task_content(came_in, **{"server-round": 0}), message_type="train.head")
        work(node, lambda task: Message(content, reply_to=task))
        reply = wait_for_reply(bench.server)
        assert reply.content.array_records["arrays"][WEIGHTS].numpy().tobytes() == out["arrays"][WEIGHTS].tobytes()
        wait_until_idle(bench)
        bench.server.give(task_content(came_in, **{"server-round": 0}), message_type="train.head")
        assert node.fetch() is None
        assert wait_for_reply(bench.server, 2).error.reason == "E_ROUNDS_A_DAY"


def test_evaluations_do_not_count_as_rounds(site: Site, bench: Bench) -> None:
    site.settings.gateway.max_rounds_a_day = 1
    content = RecordDict({"metrics": MetricRecord({"num-examples": 30})})
    with bench.node() as node:
        for number in (1, 2):
            came_in = model(SCHEMA, RNG)
            train_here(site, SCHEMA, came_in)
            bench.server.give(task_content(came_in), message_type="evaluate.test")
            work(node, lambda task: Message(content, reply_to=task))
            assert not wait_for_reply(bench.server, number).has_error()
            wait_until_idle(bench)


@pytest.mark.parametrize("kind", ["train.head", "evaluate.embed"])
def test_task_refused_for_private_study_spends_no_privacy_budget(
    site: Site, bench: Bench, schema: Callable[[Schema], None], kind: str
) -> None:
    schema(replace(SCHEMA, private_round=PrivateRound(1.0, 0.1, 10, 1e-5)))
    bench.server.give(task_content(model(SCHEMA, RNG)), message_type=kind)
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, "E_PRIVACY_KIND")
    assert not (site.folder / "privacy").exists()


# --- outgoing replies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda out: reply_content(out, **{"SMITH^JOHN": 1.0}), "E_REPLY_METRICS"),
        (lambda out: reply_content(out, **{"num-examples": 31}), "E_REPLY_EXAMPLES"),
        (lambda out: RecordDict({**reply_content(out), "notes": ConfigRecord({"a": "SMITH"})}), "E_REPLY_RECORDS"),
        (lambda out: reply_content({**out, "arrays": {WEIGHTS: out["arrays"][WEIGHTS] * 9}}), "E_REPLY_UPDATE"),
        (lambda out: reply_content({**out, "buffers": {}}), "E_REPLY_RECORDS"),
        (lambda out: RecordDict({"metrics": MetricRecord(METRICS)}), "E_REPLY_RECORDS"),
    ],
)  # fmt: skip
def test_invalid_reply_is_replaced_by_its_error_code(
    bench: Bench, spoil: Callable[[Model], RecordDict], code: str
) -> None:
    came_in = first_of(SCHEMA)
    bench.server.give(task_content(came_in))
    with bench.node() as node:
        work(node, lambda task: Message(spoil(trained(came_in, RNG, STEPS)), reply_to=task))
        is_refused(bench, code)
        assert verdicts(bench)[1:] == [("out", "train", code), ("out", f"error {code}", "passed")]
        assert b"SMITH" not in b"".join(bench.server.received.values())
        # The node and the study continue.
        wait_until_idle(bench)
        bench.server.give(task_content(came_in))
        assert node.fetch() is not None


def wait_until_idle(bench: Bench) -> None:
    assert eventually(lambda: not (bench.site.folder / "gateway" / "unanswered").exists())


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("<class 'ValueError'>: /data/SMITH^JOHN", "E_SITE_FAILED"),
        ("E_TOO_FEW_PATIENTS", "E_TOO_FEW_PATIENTS"),
        ("E_SMITH_JOHN", "E_SITE_FAILED"),
        ("E_TOO_FEW_PATIENTS_SMITH", "E_SITE_FAILED"),
        ("E_REPLY_UPDATE: SMITH", "E_SITE_FAILED"),  # a code of the gateway, which the app may not send
    ],
)
def test_error_text_of_the_app_does_not_leave_the_site(bench: Bench, reason: str, code: str) -> None:
    bench.server.give(task_content(model(SCHEMA, RNG)))
    with bench.node() as node:
        work(node, lambda task: Message(Error(2, reason), reply_to=task))
        is_refused(bench, code)
    assert verdicts(bench)[1:] == [("out", f"error {code}", "passed")]
    assert b"SMITH" not in b"".join(bench.server.received.values())
    assert all(b"SMITH" not in proto.SerializeToString() for proto, _ in bench.server.replies)


@pytest.mark.parametrize("claim", [440172.0, 999_999.0, -3.0, float("nan"), float("inf")])
def test_reported_runtime_is_measured_by_the_gateway(bench: Bench, claim: float) -> None:
    came_in = first_of(SCHEMA)
    bench.server.give(task_content(came_in))
    with bench.node() as node:
        task = node.fetch()
        assert task is not None
        node.push(Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task), claim)
        wait_for_reply(bench.server)
    ((seconds,),) = bench.server.runtimes
    assert 0 <= seconds < 60


def test_object_with_wrong_hash_is_refused(bench: Bench) -> None:
    bench.server.give(task_content(came_in := first_of(SCHEMA)))
    with bench.node() as node:
        task = node.fetch()
        assert task is not None
        reply = Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task)
        push = node.push_object

        def push_other(run_id: int, session: str, id: str, content: bytes) -> None:
            push(run_id, session, id, content + b"SMITH")

        node.push_object = push_other
        with pytest.raises(Exception, match="Failed to push object"):
            node.push(reply)
        is_refused(bench, "E_REPLY_DAMAGED")


def test_unannounced_object_is_rejected(bench: Bench) -> None:
    bench.server.give(task_content(came_in := first_of(SCHEMA)))
    with bench.node() as node:
        task = node.fetch()
        assert task is not None
        reply = Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task)
        with pytest.raises(RunNotRunningException):
            node.push_object(RUN_ID, "no session", reply.object_id, reply.deflate())
        node.push(reply)
        assert not wait_for_reply(bench.server).has_error()


# --- incoming tasks ---------------------------------------------------------------------------------------


def test_unapproved_app_is_not_delivered_to_the_node(bench: Bench) -> None:
    bench.server.app = b"PK another app"
    bench.server.give(task_content(model(SCHEMA, RNG)))
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, "E_APP_REFUSED")
    assert [path.read_bytes() for path in (bench.site.folder / "apps").glob("*.fab")] == [b"PK another app"]
    assert verdicts(bench) == [("in", "train", "E_APP_REFUSED"), ("out", "error E_APP_REFUSED", "passed")]


def test_app_with_wrong_hash_is_refused(bench: Bench) -> None:
    bench.server.named_hash = task_intake.object_id(fab.build(fab.APP))
    bench.server.app = b"PK another app"
    bench.server.give(task_content(model(SCHEMA, RNG)))
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, "E_APP_DAMAGED")


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"ledger-head": "c" * 64, "ledger-lines": 5}, "E_LEDGER_CUT"),
        ({"ledger-head": "no hash", "ledger-lines": 5}, "E_TASK_RECORDS"),
        ({"run-this": "rm"}, "E_TASK_RECORDS"),
        ({"server-round": -1}, "E_TASK_RECORDS"),
    ],
)
def test_invalid_round_settings_are_refused(bench: Bench, config: dict[str, object], code: str) -> None:
    bench.server.give(task_content(model(SCHEMA, RNG), **config))
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, code)


@pytest.mark.parametrize("kind", ["query", "evaluate", "train.other", "system"])
def test_unknown_message_type_is_refused(bench: Bench, kind: str) -> None:
    bench.server.give(task_content(model(SCHEMA, RNG)), message_type=kind)
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, "E_TASK_KIND")


def test_model_that_does_not_match_the_study_is_refused(bench: Bench) -> None:
    bench.server.give(task_content(model(schema_for(501, 8), RNG)))
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, "E_TASK_RECORDS")


def test_study_beyond_the_site_limits_is_refused(bench: Bench, schema: Callable[[Schema], None]) -> None:
    bench.server.give(task_content(model(SCHEMA, RNG)))
    schema(schema_for(500, 8, epochs=11))
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, "E_SITE_LIMIT")


@pytest.mark.parametrize(("steps", "code"), [(40, ""), (41, "E_SITE_LIMIT")])
def test_local_steps_are_limited_by_the_number_of_patients_at_the_site(
    bench: Bench, schema: Callable[[Schema], None], steps: int, code: str
) -> None:
    """An epoch of 30 patients in batches of 8 has 4 steps, and the site allows 10 epochs."""
    bench.server.give(task_content(model(SCHEMA, RNG)))
    schema(schema_for(500, 8, steps=steps))
    with bench.node() as node:
        assert (node.fetch() is None) == bool(code)
        if code:
            is_refused(bench, code)


def test_study_without_privacy_is_refused_if_the_site_requires_it(site: Site, bench: Bench) -> None:
    site.settings.privacy.required = True
    bench.server.give(task_content(model(SCHEMA, RNG)))
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, "E_PRIVACY_REQUIRED")


def test_rounds_per_day_are_limited(site: Site, bench: Bench) -> None:
    site.settings.gateway.max_rounds_a_day = 1
    came_in = first_of(SCHEMA)
    with bench.node() as node:
        bench.server.give(task_content(came_in))
        work(node, lambda task: Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task))
        assert not wait_for_reply(bench.server).has_error()
        wait_until_idle(bench)
        bench.server.give(task_content(came_in))
        assert node.fetch() is None
        assert wait_for_reply(bench.server, 2).error.reason == "E_ROUNDS_A_DAY"


def test_damaged_array_is_refused(bench: Bench) -> None:
    task = bench.server.give(task_content(model(SCHEMA, RNG)))
    chunk = next(id for id, content in bench.server.objects.items() if content.startswith(b"ArrayChunk"))
    bench.server.objects[chunk] = bench.server.objects[chunk][:-1] + b"!"
    assert task.object_id != chunk
    with bench.node() as node:
        with pytest.raises(RunNotRunningException):
            node.fetch()
        is_refused(bench, "E_TASK_DAMAGED")


# --- faults -----------------------------------------------------------------------------------------------


def test_path_outside_the_node_api_is_refused_and_logged(bench: Bench) -> None:
    with bench.node() as node:
        assert node.node_id == 42
        headers = NodeKey(bench.site).headers()
        for method, path in (
            ("POST", "/v1/fleet/register-node"),
            ("POST", "/v1/control/start-run"),
            ("GET", "/health"),
        ):
            answer = httpx.request(
                method, f"https://127.0.0.1:{bench.port}{path}", headers=headers, verify=tls(bench), timeout=60
            )
            assert (answer.status_code, answer.json()["detail"]) == (403, "E_GATEWAY_PATH")
    assert not {"register-node", "/v1/control/start-run", "/health"} & set(bench.server.paths)
    assert verdicts(bench) == [("out", "request", "E_GATEWAY_PATH")] * 3


def tls(bench: Bench) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=bench.site.folder / "keys" / "gateway.crt")


def test_request_with_another_key_is_rejected(bench: Bench, site: Site, tmp_path: Path) -> None:
    url = f"https://127.0.0.1:{bench.port}/v1/fleet/pull-messages"
    other = Site(tmp_path, site.settings)
    create_node_key(other.node_key)
    good, bad = NodeKey(site).headers(), NodeKey(other).headers()
    forged = {**bad, "flwr-public-key": good["flwr-public-key"]}
    old = {**good, "flwr-timestamp": "2026-01-01T00:00:00+00:00"}
    for headers in (bad, forged, old, {}):
        answer = httpx.post(url, headers=headers, verify=tls(bench), timeout=60)
        assert (answer.status_code, answer.json()["detail"]) == (401, "E_GATEWAY_KEY")
    assert httpx.post(url, headers=good, verify=tls(bench), timeout=60).status_code == 200
    assert bench.server.paths == ["pull-messages"]


def test_too_long_body_is_rejected(bench: Bench) -> None:
    url = f"https://127.0.0.1:{bench.port}/v1/fleet/pull-messages"
    headers = NodeKey(bench.site).headers()
    # A body of the maximum length is read, but it is not a valid message.
    for length, status in ((MAX_BODY_BYTES, 400), (MAX_BODY_BYTES + 1, 413)):
        assert (
            httpx.post(url, content=b"\xff" * length, headers=headers, verify=tls(bench), timeout=60).status_code
            == status
        )
    assert not bench.server.paths


def test_disconnect_of_the_node_logs_no_stack_trace(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    headers = {"host": "127.0.0.1", "content-length": "1000", "expect": "100-continue", **NodeKey(bench.site).headers()}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    caplog.set_level("INFO")
    with (
        socket.create_connection(("127.0.0.1", bench.port)) as bare,
        tls(bench).wrap_socket(bare, server_hostname="127.0.0.1") as node,
    ):
        node.sendall(f"POST /v1/fleet/pull-messages HTTP/1.1\r\n{head}\r\n".encode())
        assert b"100 Continue" in node.recv(1000)  # the gateway has begun with the request
        node.sendall(b"half of")
    assert eventually(lambda: "the node hung up" in caplog.text)
    assert "ERROR" not in caplog.text and "Traceback" not in caplog.text


def test_gateway_waits_for_the_next_task_only_after_a_reply(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_exchange, "SOON_SECONDS", 60.0)
    monkeypatch.setattr(task_exchange, "ASK_SECONDS", 0.05)
    came_in = first_of(SCHEMA)
    with bench.node() as node:
        assert node.receive() is None  # returns at once, because no task has been answered yet
        assert sum("pull-messages" in path for path in bench.server.paths) == 1
        bench.server.give(task_content(came_in))
        work(node, lambda task: Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task))
        later = threading.Timer(0.3, bench.server.give, [task_content(came_in)])
        later.start()
        assert node.receive() is not None
        later.join()


def requests_until_an_answer(bench: Bench, node: NodeSide) -> int:
    """Let the node answer one task; return how often the gateway asked the server for tasks."""
    came_in = first_of(SCHEMA)
    bench.server.give(task_content(came_in))
    work(node, lambda task: Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task))
    return bench.server.paths.count("pull-messages")


def test_gateway_waits_for_the_next_task_no_longer_than_the_node(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_exchange, "SOON_SECONDS", 60.0)
    with bench.node() as node:
        asked = requests_until_an_answer(bench, node)
        monkeypatch.setattr(task_exchange, "HOLD_SECONDS", 0.3)  # only now: the checks of a task may take longer
        assert node.receive() is None
        assert asked < bench.server.paths.count("pull-messages") <= asked + 4


def test_gateway_that_ends_answers_a_node_that_waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_exchange, "SOON_SECONDS", 600.0)
    monkeypatch.setattr(task_exchange, "HOLD_SECONDS", 600.0)
    monkeypatch.setattr(task_exchange, "ASK_SECONDS", 300.0)
    with ThreadPoolExecutor(1) as pool, bench.node() as node:
        asked = requests_until_an_answer(bench, node)
        url = f"https://127.0.0.1:{bench.port}/v1/fleet/pull-messages"
        body = PullMessagesRequest(node=Node(node_id=node.node_id)).SerializeToString()
        headers = NodeKey(bench.site).headers()
        waiting = pool.submit(httpx.post, url, content=body, headers=headers, verify=tls(bench), timeout=60)
        assert eventually(lambda: bench.server.paths.count("pull-messages") > asked)
        bench.stop_gateway()
    assert waiting.result().status_code == 200  # an answer, not a broken connection


def test_gateway_of_a_study_with_many_sites_asks_less_often(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_exchange, "SOON_SECONDS", 60.0)
    monkeypatch.setattr(task_exchange, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(task_exchange, "ASK_PART", 0.0)
    monkeypatch.setattr(task_exchange, "ASKS_A_SECOND", 500)
    bench.server.study = '{"study": {"sites": 100}}'
    with bench.node() as node:
        asked = requests_until_an_answer(bench, node)
        monkeypatch.setattr(task_exchange, "HOLD_SECONDS", 0.5)  # only now: the checks of a task may take longer
        assert node.receive() is None
        assert bench.server.paths.count("pull-messages") <= asked + 3


@pytest.mark.parametrize("app", [fab.build(fab.APP), b"PK another app"], ids=["accepted", "refused"])
def test_node_is_not_blocked_by_long_checks(bench: Bench, monkeypatch: pytest.MonkeyPatch, app: bytes) -> None:
    """The first request returns no task. The next request returns the task if it passed, otherwise the next task."""
    monkeypatch.setattr(task_exchange, "HOLD_SECONDS", 0.1)
    bench.server.app = app
    bench.server.give(task_content(model(SCHEMA, RNG)))
    bench.server.down_for = {"get-run"}
    with bench.node() as node:
        assert node.receive() is None
        assert node.receive() is None  # no other task is delivered meanwhile
        assert bench.server.paths.count("pull-messages") == 1
        bench.server.down_for = set()
        if app != fab.build(fab.APP):
            is_refused(bench, "E_APP_REFUSED")
            wait_until_idle(bench)
            bench.server.app = fab.build(fab.APP)
            bench.server.give(task_content(model(SCHEMA, RNG)))
        assert eventually(node.fetch) is not None


def test_reply_is_delivered_after_a_server_outage(bench: Bench) -> None:
    came_in = first_of(SCHEMA)
    bench.server.give(task_content(came_in))
    with bench.node() as node:
        task = node.fetch()
        assert task is not None
        bench.server.down = True
        # The node does not wait for the server.
        node.push(Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task))
        assert node.receive() is None
        time.sleep(0.5)
        assert not bench.server.replies
        bench.server.down = False
        assert not wait_for_reply(bench.server).has_error()


@pytest.mark.parametrize(("patience_s", "status", "tries"), [(600.0, 200, 3), (0.0, 503, 1)])
def test_heartbeat_is_repeated_within_the_timeout_of_the_node(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, patience_s: float, status: int, tries: int
) -> None:
    monkeypatch.setattr(proxy, "HEARTBEAT_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(proxy, "HEARTBEAT_SECONDS", 60.0)
    monkeypatch.setattr(proxy, "NODE_WAITS_SECONDS", patience_s)
    bench.server.lost = 2
    body = SendNodeHeartbeatRequest(node=Node(node_id=NODE_ID)).SerializeToString()
    url = f"https://127.0.0.1:{bench.port}/v1/fleet/send-node-heartbeat"
    answer = httpx.post(url, content=body, headers=NodeKey(bench.site).headers(), verify=tls(bench), timeout=60)
    assert (answer.status_code, len(bench.server.paths)) == (status, tries)


def test_expired_push_session_is_restarted(bench: Bench) -> None:
    came_in = first_of(SCHEMA)
    bench.server.give(task_content(came_in))
    bench.server.forgets = 1
    with bench.node() as node:
        work(node, lambda task: Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task))
        assert not wait_for_reply(bench.server, 2).has_error()


def test_reply_of_a_finished_run_is_dropped(bench: Bench) -> None:
    came_in = first_of(SCHEMA)
    bench.server.give(task_content(came_in))
    bench.server.run_is_over = True
    with bench.node() as node:
        work(node, lambda task: Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task))
        wait_until_idle(bench)
        assert verdicts(bench)[-1] == ("out", "dropped", "E_RUN_OVER")


def test_restarted_gateway_reports_the_interrupted_task_to_the_server(bench: Bench) -> None:
    came_in = first_of(SCHEMA)
    bench.server.give(task_content(came_in))
    with bench.node() as node:
        task = node.fetch()
        assert task is not None
        bench.stop_gateway()
        bench.start_gateway()
        is_refused(bench, "E_GATEWAY_ENDED")
        # The node's reply is dropped, as after the end of a run. The node continues.
        with pytest.raises(RunNotRunningException):
            node.push(Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task))
        wait_until_idle(bench)
        bench.server.give(task_content(came_in))
        assert node.fetch() is not None


def test_restarted_node_gets_its_task_again(bench: Bench) -> None:
    came_in = first_of(SCHEMA)
    bench.server.give(task_content(came_in))
    with bench.node() as node:
        assert node.fetch() is not None
    with bench.node() as node:
        work(node, lambda task: Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task))
        assert not wait_for_reply(bench.server).has_error()
    assert bench.server.paths.count("get-fab") == 1


def test_task_fails_after_the_node_dropped_it_repeatedly(bench: Bench) -> None:
    bench.server.give(task_content(model(SCHEMA, RNG)))
    with bench.node() as node:
        for _ in range(3):
            assert node.receive() is not None
        assert node.receive() is None
        is_refused(bench, "E_SITE_FAILED")


def test_reply_is_refused_if_the_ledger_cannot_be_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    came_in = first_of(SCHEMA)
    bench.server.give(task_content(came_in))
    with bench.node() as node:
        task = node.fetch()
        assert task is not None

        def full(ledger: object, entry: object) -> None:
            raise Refusal(reasons.LEDGER_WRITE)

        monkeypatch.setattr(Ledger, "append", full)
        node.push(Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task))
        is_refused(bench, "E_LEDGER_WRITE")


def test_task_without_content_is_refused(bench: Bench) -> None:
    bench.server.give(RecordDict())
    with bench.node() as node:
        assert node.fetch() is None
        is_refused(bench, "E_TASK_RECORDS")


def test_reply_to_another_task_is_rejected(bench: Bench) -> None:
    bench.server.give(task_content(came_in := first_of(SCHEMA)))
    with bench.node() as node:
        task = node.fetch()
        assert task is not None
        other = message(task.content, src_node_id=1, dst_node_id=42, reply_to_message_id="", group_id="9")
        with pytest.raises(RunNotRunningException):
            node.push(Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=other))
        node.push(Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task))
        assert not wait_for_reply(bench.server).has_error()
