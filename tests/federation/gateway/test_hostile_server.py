"""Messages of a hostile server do not block the node, also after a restart of the gateway."""

# ruff: noqa: F811 (the fixtures are imported from test_task_exchange)

import asyncio
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, message_pb2
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_tree

from federation.approval import fab
from federation.gateway import reasons, task_checks, task_intake
from federation.gateway import schema as schemas
from federation.gateway.upstream import MAX_SMALL_BYTES
from pipeline.site.folder import Site
from tests.federation.gateway.fake_server import Bench, Server
from tests.federation.gateway.messages import first_of, message, trained
from tests.federation.gateway.test_task_exchange import (  # noqa: F401
    SCHEMA,
    STEPS,
    bench,
    is_refused,
    reply_content,
    schema,
    site,
    task_content,
    verdicts,
    wait_for_reply,
    wait_until_idle,
    work,
)
from tests.fuzz.gateway.steady import memory_bytes
from tests.helpers.waiting import eventually

RNG = np.random.default_rng(2)
DROPPED = ("in", "message", reasons.TASK_UNANSWERABLE.code)
TYPES = ["", "train.", ".", "..", "train..head", "train.\0", "\0", "train.1", "TRAIN", " train", "x" * 81, "train.é\0"]
METADATA = [
    {"ttl": math.nan},
    {"ttl": math.inf},
    {"ttl": 0.0},
    {"ttl": -1.0},
    {"ttl": 1e300},
    {"created_at": math.nan},
    {"created_at": -math.inf},
    {"created_at": 1e300},
    {"message_id": ""},
    {"message_id": "../../../etc/passwd"},
    {"message_id": "A" * 64},
    {"message_id": "a" * 65},
    {"message_id": "a" * 64 + "\n"},
    {"reply_to_message_id": "\0"},
    {"group_id": "9" * 256},
    {"dst_node_id": 43},
    {"dst_node_id": 0},
]


def give_raw(bench: Bench, *answers: fleet_pb2.PullMessagesResponse) -> None:
    """Set the next answers of the server to requests for messages. After them it gives valid answers again."""
    waiting, honest = list(answers), bench.server.pull_messages

    def pull_messages(body: bytes) -> Any:
        return waiting.pop(0) if waiting else honest(body)

    bench.server.pull_messages = pull_messages  # type: ignore[method-assign]


def answer_with(**metadata: Any) -> fleet_pb2.PullMessagesResponse:
    """A message that is valid except for these fields of its metadata."""
    about: dict[str, Any] = {"src_node_id": 1, "dst_node_id": 42, "reply_to_message_id": "", "created_at": time.time()}
    task = message(task_content({}), **about)
    proto = message_to_proto(task)
    for name, value in metadata.items():
        setattr(proto.metadata, name, value)
    return fleet_pb2.PullMessagesResponse(messages_list=[proto], message_object_trees=[get_object_tree(task)])


def honest_round(bench: Bench, number: int = 1) -> None:
    """Check that the next task is processed and answered normally."""
    came_in = first_of(SCHEMA)
    bench.server.give(task_content(came_in))
    with bench.node() as node:
        work(node, lambda task: Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task))
        assert not wait_for_reply(bench.server, number).has_error()
    wait_until_idle(bench)


def spool_file(bench: Bench) -> Path:
    return bench.site.folder / "gateway" / "unanswered"


@pytest.mark.parametrize("metadata", [*({"message_type": type} for type in TYPES), *METADATA], ids=repr)
def test_message_that_cannot_be_answered_is_dropped(bench: Bench, metadata: dict[str, Any]) -> None:
    give_raw(bench, answer_with(**metadata), answer_with(**metadata))
    with bench.node() as node:
        assert node.receive() is None
        assert node.receive() is None
    assert verdicts(bench) == [DROPPED, DROPPED]
    assert not bench.server.replies and not spool_file(bench).exists()
    honest_round(bench)


@pytest.mark.parametrize("type", ["", "train.", "\0"])
def test_unanswerable_message_does_not_block_a_restarted_gateway(bench: Bench, type: str) -> None:
    give_raw(bench, answer_with(message_type=type))
    with bench.node() as node:
        assert node.receive() is None
    bench.stop_gateway()
    bench.start_gateway()
    honest_round(bench)


def leftover(**metadata: Any) -> bytes:
    return answer_with(**metadata).messages_list[0].SerializeToString()


@pytest.mark.parametrize(
    "left",
    [
        b"\xff\xff\xff",
        b"\0",
        leftover(message_type=""),
        leftover(message_type="train."),
        leftover(message_type="a\0b"),
        leftover(message_id=""),
        leftover(ttl=math.nan),
        leftover()[:-3],
    ],
)
def test_gateway_starts_with_an_invalid_spool_file(bench: Bench, left: bytes) -> None:
    for _ in range(2):
        bench.stop_gateway()
        spool_file(bench).write_bytes(left)
        bench.start_gateway()
        assert not spool_file(bench).exists()
    assert verdicts(bench) == [DROPPED, DROPPED]
    honest_round(bench)


def test_unreadable_spool_file_is_not_deleted(bench: Bench) -> None:
    bench.stop_gateway()
    spool_file(bench).mkdir()
    bench.start_gateway()
    assert verdicts(bench) == [DROPPED]
    spool_file(bench).rmdir()
    honest_round(bench)


def test_unknown_fields_of_a_message_are_removed(bench: Bench) -> None:
    came_in = first_of(SCHEMA)
    bench.server.give(task_content(came_in))
    answer = bench.server.pull_messages(b"")
    about = answer.messages_list[0].metadata
    about.MergeFromString(b"\xfa\x3e\x05hello")  # field 1007
    assert b"hello" in about.SerializeToString()
    give_raw(bench, answer)
    with bench.node() as node:
        assert node.receive() is not None
    assert b"hello" not in spool_file(bench).read_bytes()  # the spool file holds the message that the node receives


def test_node_gets_run_information_written_by_the_gateway(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's node builds a folder name from the app's id and version, and starts a program by the task's type."""
    get_run, get_fab = bench.server.get_run, bench.server.get_fab

    def hostile_run(body: bytes) -> Any:
        answer = get_run(body)
        answer.run.fab_id, answer.run.fab_version = "../../../tmp/SMUGGLED", "../../SMUGGLED"
        answer.run.primary_task_type = "flwr-agentapp"
        answer.run.account_name = answer.run.federation = answer.run.flwr_aid = "SMUGGLED"
        return answer

    def hostile_fab(body: bytes) -> Any:
        answer = get_fab(body)
        answer.fab.verifications["valid_license"] = "SMUGGLED"
        return answer

    monkeypatch.setattr(bench.server, "get_run", hostile_run)
    monkeypatch.setattr(bench.server, "get_fab", hostile_fab)
    bench.server.give(task_content(first_of(SCHEMA)))
    with bench.node() as node:
        assert node.receive() is not None
        run = node.get_run(7)
        app = node.get_fab(run.fab_hash, 7)
    own = fab.read(bench.server.app)
    assert f"{run.fab_id} {run.fab_version}" == own.name
    assert run.override_config == {"study": '{"study": {}}', "run": "trial-0123abcd"}
    assert run.primary_task_type == "" and "SMUGGLED" not in repr(run)
    assert (app.content, app.verifications) == (bench.server.app, {})


# --- the objects of a message -----------------------------------------------------------------------------


def slow_tree(root: str, count: int) -> ObjectTree:
    """A tree of `count` objects that the server never delivers."""
    tree = ObjectTree(object_id=root)
    tree.children.extend(ObjectTree(object_id=f"{number:064x}") for number in range(count))
    return tree


def never(body: bytes) -> Any:
    return message_pb2.PullObjectResponse(object_found=True, object_available=False)


def pulls(bench: Bench) -> int:
    return bench.server.paths.count("pull-object")


@pytest.mark.parametrize("count", [task_checks.max_objects(SCHEMA.takes("train")), 3000])
def test_message_with_too_many_objects_is_refused_before_any_fetch(bench: Bench, count: int) -> None:
    answer = answer_with()
    del answer.message_object_trees[:]
    answer.message_object_trees.append(slow_tree(answer.messages_list[0].metadata.message_id, count))
    give_raw(bench, answer)
    with bench.node() as node:
        assert node.receive() is None
    is_refused(bench, "E_TASK_DAMAGED")
    assert pulls(bench) == 0


@pytest.mark.slow
def test_fetching_stops_when_a_message_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 messages with one bad object among slow ones: requests stop at the refusal, and memory use is constant."""
    most = task_checks.max_objects(SCHEMA.takes("train"))
    bad = "b" * 64

    def pull_object(body: bytes) -> Any:
        if message_pb2.PullObjectRequest.FromString(body).object_id == bad:
            return message_pb2.PullObjectResponse(object_found=False)
        return never(body)

    rss = memory_bytes()
    with monkeypatch.context() as patched, bench.node() as node:
        patched.setattr(task_intake, "RETRY_SECONDS", 0.05)
        patched.setattr(bench.server, "pull_object", pull_object)
        for number in range(1, 61):
            answer = answer_with(group_id=str(number))
            root = f"{number:064x}"
            answer.messages_list[0].metadata.message_id = root
            tree = slow_tree(root, most - 2)
            tree.children.insert(1, ObjectTree(object_id=bad))
            del answer.message_object_trees[:]
            answer.message_object_trees.append(tree)
            give_raw(bench, answer)
            assert node.receive() is None
            wait_for_replies(bench, number)
            wait_until_idle(bench)
        before = pulls(bench)
        time.sleep(0.5)
        assert pulls(bench) == before
    assert before < 60 * 20
    assert memory_bytes() - rss < 30 * 2**20
    honest_round(bench, 61)


def wait_for_replies(bench: Bench, count: int) -> None:
    assert eventually(lambda: len(bench.server.replies) >= count)


@pytest.mark.parametrize("limit", ["ours", "the task's"])
def test_unavailable_objects_end_in_a_timeout(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
) -> None:
    if limit == "ours":
        monkeypatch.setattr(task_intake, "MAX_FETCH_SECONDS", 0.5)
    bench.server.give(
        task_content(first_of(SCHEMA)), created_at=time.time(), ttl=0.5 if limit == "the task's" else 3600.0
    )
    monkeypatch.setattr(bench.server, "pull_object", never)
    with bench.node() as node:
        assert node.receive() is None
    is_refused(bench, "E_RUN_OVER")
    before = pulls(bench)
    time.sleep(0.3)
    assert pulls(bench) == before


class SlowServer(Server):
    """Answers no request for an object before the test is over."""

    is_over = False

    async def handle(self, request: web.Request) -> web.Response:
        while request.path.endswith("pull-object") and not self.is_over:
            await asyncio.sleep(0.02)
        return await super().handle(request)


@pytest.mark.slow
def test_slow_object_transfer_ends_in_a_timeout(
    site: Site,
    schema: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(task_intake, "MAX_FETCH_SECONDS", 0.3)
    bench = Bench(site, server := SlowServer())
    server.give(task_content(first_of(SCHEMA)))
    with bench.node() as node:
        assert node.receive() is None
    is_refused(bench, "E_RUN_OVER")
    server.is_over = True
    bench.close()


def test_too_large_record_is_refused_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.server.give(task_content(first_of(SCHEMA)))
    large = message_pb2.PullObjectResponse(
        object_found=True, object_available=True, object_content=bytes(MAX_SMALL_BYTES)
    )
    monkeypatch.setattr(bench.server, "pull_object", lambda body: large)
    with bench.node() as node:
        assert node.receive() is None
    is_refused(bench, "E_TASK_DAMAGED")
    assert pulls(bench) <= 8


def test_number_of_cached_study_schemas_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run may have a study with another seed, and so with another first model."""
    asked = []

    def answer(command: list[str], *, input: bytes, **options: Any) -> SimpleNamespace:
        asked.append(input.decode())
        return SimpleNamespace(stdout=SCHEMA.to_json())

    monkeypatch.setattr("federation.gateway.schema.subprocess.run", answer)
    for number in range(schemas.KEPT_SCHEMAS + 10):
        study = json.dumps({"study": {"seed": number}})
        assert schemas.schema_of(study, tmp_path, tmp_path).rounds == SCHEMA.rounds
        schemas.first_model_of(study, tmp_path, tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == schemas.KEPT_SCHEMAS
    assert len(list(tmp_path.glob("*.first"))) == schemas.KEPT_SCHEMAS
    asked.clear()
    schemas.schema_of(study, tmp_path, tmp_path)
    assert asked == []  # the newest schema is still cached
