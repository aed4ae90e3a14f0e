"""Two nodes at a real server: each can access only its own messages and objects.

Both nodes have a valid certificate, and each knows the other's node id, message ids and object ids.
"""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supernode.fleet_http_client import FleetHttpClient

from federation.enrolment.certificates import load_node_key, public_pem
from federation.superlink.control import loopback_certificate, read_server_config
from federation.system.process import flower_command, flower_environment, free_port
from pipeline.site.folder import Site
from tests.e2e.conftest import Command
from tests.e2e.ingress_rig import NGINX, Rig, running_nginx
from tests.e2e.test_ingress import Running, fleet, join, ok

pytestmark = pytest.mark.e2e

OTHERS = (403, "E_NOT_FOR_NODE")
APP = """
[project]
name = "bound"
version = "0.1.0"
description = "Sends each node a message."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "tests"

[tool.flwr.app.components]
serverapp = "bound.server_app:app"
clientapp = "bound.client_app:app"

[tool.flwr.app.config]
folder = "{folder}"
first = "{first}"
"""
# Sends a message to the node `first`, later to the other node, and writes the replies to files.
SERVER_APP = """
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    folder, first = Path(context.run_config["folder"]), int(context.run_config["first"])
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.2)
    sent = []

    def send(node):
        arrays = ArrayRecord({"w": Array(np.full(500, node % 251))})
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"for": str(node)})})
        sent.extend(grid.push_messages([Message(content, node, "train")]))

    send(first)
    (folder / "first").touch()
    while not (folder / "go").exists():
        time.sleep(0.2)
    send(next(node for node in nodes if node != first))
    (folder / "both").touch()
    while not (folder / "end").exists():
        for reply in grid.pull_messages(sent):
            values = dict(reply.content["metrics"]) if reply.has_content() else reply.error.reason
            (folder / f"reply-{reply.metadata.src_node_id}").write_text(json.dumps(values))
            sent.remove(reply.metadata.reply_to_message_id)
        time.sleep(0.2)
"""
CLIENT_APP = """
from flwr.clientapp import ClientApp

app = ClientApp()
"""


@dataclass
class Reply:
    """A reply in the form that a node sends."""

    message: ProtoMessage
    tree: ObjectTree
    objects: dict[str, bytes]


def reply_to(task: ProtoMessage, value: float) -> Reply:
    reply = Message(RecordDict({"metrics": MetricRecord({"value": value})}), reply_to=message_from_proto(task))
    reply.metadata.__dict__["_message_id"] = reply.object_id
    objects = {id: thing.deflate() for id, thing in get_all_nested_objects(reply).items()}
    return Reply(message_to_proto(reply), get_object_tree(reply), objects)


def refusal(call: Callable[..., object], *arguments: Any, **options: Any) -> tuple[int, str]:
    with pytest.raises(httpx.HTTPStatusError) as error:
        call(*arguments, **options)
    return error.value.response.status_code, error.value.response.json()["detail"]


@dataclass
class Hospital:
    """A node that calls Flower's Fleet API directly, also with forged fields."""

    client: FleetHttpClient
    id: int
    task: ProtoMessage | None = None
    task_tree: ObjectTree | None = None

    @property
    def node(self) -> Node:
        return Node(node_id=self.id)

    @property
    def run(self) -> int:
        assert self.task is not None
        return self.task.metadata.run_id

    def pull(self) -> None:
        deadline = time.monotonic() + 120
        while not (answer := self.client.PullMessages(PullMessagesRequest(node=self.node))).messages_list:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        self.task, self.task_tree = answer.messages_list[0], answer.message_object_trees[0]

    def push(self, reply: Reply, *, node: Node | None = None) -> PushMessagesResponse:
        request = PushMessagesRequest(
            node=node or self.node, messages_list=[reply.message], message_object_trees=[reply.tree]
        )
        return self.client.PushMessages(request)

    def push_object(self, reply: Reply, id: str, session: str) -> bool:
        request = PushObjectRequest(
            node=self.node, run_id=self.run, object_id=id, object_content=reply.objects[id], session_id=session
        )
        return self.client.PushObject(request).stored

    def object(self, id: str, *, node: Node | None = None, run: int | None = None) -> bytes:
        request = PullObjectRequest(node=node or self.node, run_id=run or self.run, object_id=id)
        return self.client.PullObject(request).object_content

    def confirm(self, id: str) -> None:
        request = ConfirmMessageReceivedRequest(node=self.node, run_id=self.run, message_object_id=id)
        self.client.ConfirmMessageReceived(request)


@dataclass
class Study:
    """A server with an active run in which north, but not south, was sent a message."""

    server: Running
    folder: Path
    north: Hospital
    south: Hospital

    def wait_for(self, name: str) -> str:
        deadline = time.monotonic() + 120
        while not (self.folder / name).exists():
            log = self.server.folder / "logs" / "superexec.log"
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        return (self.folder / name).read_text()


@pytest.fixture(
    scope="module",
    params=["door", pytest.param("nginx", marks=pytest.mark.skipif(NGINX is None, reason="nginx is not installed"))],
)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, start: Callable[..., Command]
) -> Iterator[Running]:
    run = tmp_path_factory.mktemp("s")  # the path of a Unix socket must be short
    folder, port = run / "server", free_port()
    ok("server", "init", folder, "--port", str(port))
    behind_nginx = request.param == "nginx"
    if behind_nginx:
        settings = folder / "server.toml"
        settings.write_text(settings.read_text() + f'\nsocket = "{run}/door.sock"\n')
    with contextlib.ExitStack() as stack:
        command = start("server", "start", folder)
        command.wait_for("The server is up", seconds=300)
        if behind_nginx:
            stack.enter_context(running_nginx(Rig(folder, port), run))
        yield Running(folder, command)
        command.kill()


@pytest.fixture(scope="module")
def study(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    folder = tmp_path_factory.mktemp("study")
    with contextlib.ExitStack() as stack:
        north, south = (
            stack.enter_context(hospital(join(server, tmp_path_factory.mktemp(name) / "site", name)))
            for name in ("north", "south")
        )
        submit(server, folder, first=north.id)
        study = Study(server, folder, north, south)
        study.wait_for("first")
        north.pull()
        yield study
        (folder / "end").touch()


@contextlib.contextmanager
def hospital(site: Site) -> Iterator[Hospital]:
    with fleet(site) as client:
        key = public_pem(load_node_key(site.node_key).public_key())
        answer = client.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=600))
        yield Hospital(client, answer.node_id)


def submit(server: Running, folder: Path, *, first: int) -> None:
    """Start a run on the server with Flower's own command."""
    package = folder / "app" / "bound"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "server_app.py").write_text(SERVER_APP)
    (package / "client_app.py").write_text(CLIENT_APP)
    (folder / "app" / "pyproject.toml").write_text(APP.format(folder=folder, first=first))
    home = folder / "flower"
    home.mkdir()
    port = read_server_config(server.folder).control_port
    (home / "config.toml").write_text(
        f'[superlink.here]\naddress = "127.0.0.1:{port}"\nroot-certificates = "{loopback_certificate(server.folder)}"\n'
    )
    command = [flower_command("flwr"), "run", str(folder / "app"), "here"]
    done = subprocess.run(
        command, env=flower_environment(home), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- before south has its own message ----------------------------------------------------------------


def test_node_cannot_read_a_run_in_which_it_has_no_message(study: Study) -> None:
    north, south = study.north, study.south
    assert north.task is not None
    asked = GetRunRequest(node=south.node, run_id=north.run)
    assert refusal(south.client.GetRun, asked) == OTHERS
    run = north.client.GetRun(GetRunRequest(node=north.node, run_id=north.run)).run
    app = GetFabRequest(node=south.node, run_id=north.run, hash_str=run.fab_hash)
    assert refusal(south.client.GetFab, app) == OTHERS
    asked.node.node_id = north.id
    assert refusal(south.client.GetRun, asked)[0] == 401  # the check of Flower itself


def test_node_cannot_pull_objects_or_confirm_messages_of_another(study: Study) -> None:
    north, south = study.north, study.south
    assert north.task is not None
    assert north.task_tree is not None
    for part in iterate_object_tree(north.task_tree):
        assert refusal(south.object, part.object_id, run=north.run) == OTHERS
    confirm = ConfirmMessageReceivedRequest(
        node=south.node, run_id=north.run, message_object_id=north.task.metadata.message_id
    )
    assert refusal(south.client.ConfirmMessageReceived, confirm) == OTHERS


# --- after both have a message -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(study: Study) -> Study:
    (study.folder / "go").touch()
    study.wait_for("both")
    study.south.pull()
    return study


def test_node_can_pull_only_the_objects_sent_to_it(both: Study) -> None:
    for me in (both.north, both.south):
        assert me.task_tree is not None
        for part in iterate_object_tree(me.task_tree):
            assert me.object(part.object_id)
        run = me.client.GetRun(GetRunRequest(node=me.node, run_id=me.run)).run
        assert me.client.GetFab(GetFabRequest(node=me.node, run_id=me.run, hash_str=run.fab_hash)).fab.content
    ours, theirs = (
        {part.object_id for part in iterate_object_tree(me.task_tree)}  # type: ignore[arg-type]
        for me in (both.north, both.south)
    )
    only_norths = ours - theirs
    assert len(only_norths) >= 4  # message, records, configuration, array, chunk
    for id in only_norths:
        assert refusal(both.south.object, id) == OTHERS
        assert refusal(both.south.object, id, node=both.north.node)[0] == 401


def forged_source(south: Hospital, north: Hospital) -> Reply:
    """South sends a reply in north's name. Earlier versions of the server accepted it."""
    assert north.task is not None
    return reply_to(north.task, 666.0)


def own_name(south: Hospital, north: Hospital) -> Reply:
    """South replies to north's message in its own name."""
    reply = forged_source(south, north)
    reply.message.metadata.src_node_id = south.id
    return reply


def a_task(south: Hospital, north: Hospital) -> Reply:
    """South sends a message to north that pretends to come from the server."""
    reply = forged_source(south, north)
    metadata = reply.message.metadata
    metadata.src_node_id, metadata.dst_node_id, metadata.reply_to_message_id = 1, north.id, ""
    return reply


def own_task(south: Hospital, north: Hospital) -> Reply:
    """South sends a message to north in its own name."""
    reply = a_task(south, north)
    reply.message.metadata.src_node_id = south.id
    return reply


def norths_root(south: Hospital, north: Hospital) -> Reply:
    """South's own reply, with the objects of north's task: they would be deleted with south's session."""
    assert south.task is not None
    assert north.task_tree is not None
    reply = reply_to(south.task, 1.0)
    reply.tree.CopyFrom(north.task_tree)
    return reply


def norths_id(south: Hospital, north: Hospital) -> Reply:
    """As `norths_root`, with the id of north's task."""
    reply = norths_root(south, north)
    reply.message.metadata.message_id = reply.tree.object_id
    return reply


def norths_below(south: Hospital, north: Hospital) -> Reply:
    """South's own reply, which contains north's whole message: it would be deleted with the reply."""
    assert south.task is not None
    assert north.task_tree is not None
    reply = reply_to(south.task, 1.0)
    reply.tree.children.append(north.task_tree)
    return reply


def other_run(south: Hospital, north: Hospital) -> Reply:
    """South's own reply, for a run that does not exist."""
    assert south.task is not None
    reply = reply_to(south.task, 1.0)
    reply.message.metadata.run_id += 1
    return reply


FORGERIES = [forged_source, own_name, a_task, own_task, norths_root, norths_id, norths_below, other_run]


@pytest.mark.parametrize("forge", FORGERIES)
def test_forged_message_is_refused(both: Study, forge: Callable[..., Reply]) -> None:
    north, south = both.north, both.south
    assert refusal(south.push, forge(south, north)) == OTHERS
    assert refusal(south.push, forge(south, north), node=north.node)[0] == 401


@pytest.mark.parametrize(("messages", "trees"), [(0, 0), (1, 0), (0, 1), (2, 1), (1, 2), (2, 2)])
def test_push_request_must_contain_exactly_one_message(both: Study, messages: int, trees: int) -> None:
    """Flower checks only the first message. The others would be unchecked."""
    assert both.south.task is not None
    reply = reply_to(both.south.task, 1.0)
    request = PushMessagesRequest(
        node=both.south.node, messages_list=[reply.message] * messages, message_object_trees=[reply.tree] * trees
    )
    assert refusal(both.south.client.PushMessages, request) == OTHERS


def test_refusal_is_logged_with_the_site_of_the_sender(both: Study) -> None:
    refusal(lambda: both.south.push(forged_source(both.south, both.north)))
    assert any("refused site=south" in line and OTHERS[1] in line for line in both.server.log().splitlines())
    assert "site=north" not in "".join(line for line in both.server.log().splitlines() if OTHERS[1] in line)


def test_listing_a_foreign_object_in_own_reply_gives_no_access(both: Study) -> None:
    """Replies may share objects with tasks, so the announcement itself is accepted."""
    north, south = both.north, both.south
    assert south.task is not None
    assert north.task_tree is not None
    south.confirm(south.task.metadata.message_id)
    mine = reply_to(south.task, 2.0)
    wanted = next(part for part in iterate_object_tree(north.task_tree) if not part.children)
    mine.tree.children.append(wanted)
    answer = south.push(mine)
    assert refusal(south.object, wanted.object_id) == OTHERS
    for id in answer.objects_to_push:
        assert south.push_object(mine, id, answer.session_id)
    assert json.loads(both.wait_for(f"reply-{south.id}")) == {"value": 2.0}
    assert refusal(south.object, wanted.object_id) == OTHERS
    assert north.object(wanted.object_id)


@pytest.fixture(scope="module")
def announced(both: Study) -> tuple[Reply, PushMessagesResponse]:
    """North's valid reply, announced but without any uploaded object."""
    assert both.north.task is not None
    both.north.confirm(both.north.task.metadata.message_id)
    reply = reply_to(both.north.task, 7.0)
    return reply, both.north.push(reply)


def test_node_cannot_push_objects_into_the_session_of_another(
    both: Study, announced: tuple[Reply, PushMessagesResponse]
) -> None:
    reply, answer = announced
    assert set(answer.objects_to_push) == set(reply.objects)
    for id in reply.objects:
        assert refusal(both.south.push_object, reply, id, answer.session_id) == OTHERS
        assert refusal(both.south.push_object, reply, id, "") == OTHERS
        assert refusal(both.north.push_object, reply, id, "") == OTHERS  # gateways send the session id
    assert not both.south.push_object(reply, next(iter(reply.objects)), "no such session")


def test_node_cannot_announce_the_reply_of_another_again(
    both: Study, announced: tuple[Reply, PushMessagesResponse]
) -> None:
    """It would end north's session, and it would delete the reply when south's session ends."""
    reply, _ = announced
    assert both.south.task is not None
    mine = reply_to(both.south.task, 1.0)
    mine.message.metadata.message_id = reply.message.metadata.message_id
    mine.tree.CopyFrom(reply.tree)
    assert refusal(both.south.push, mine) == OTHERS
    assert refusal(both.south.push, reply) == OTHERS


def test_node_cannot_read_or_delete_the_reply_of_another(
    both: Study, announced: tuple[Reply, PushMessagesResponse]
) -> None:
    reply, _ = announced
    for id in reply.objects:
        assert refusal(both.south.object, id) == OTHERS
        assert refusal(both.south.confirm, id) == OTHERS
    assert both.north.task is not None
    assert refusal(both.south.confirm, both.north.task.metadata.message_id) == OTHERS
    part = next(id for id in reply.objects if id != reply.message.metadata.message_id)
    assert refusal(both.north.confirm, part) == OTHERS


def test_valid_reply_arrives(both: Study, announced: tuple[Reply, PushMessagesResponse]) -> None:
    """Must run last: after all tests above, the ServerApp receives north's reply and no forged one."""
    reply, answer = announced
    north = both.north
    for id in reply.objects:
        assert north.push_object(reply, id, answer.session_id)
    assert json.loads(both.wait_for(f"reply-{north.id}")) == {"value": 7.0}
    assert north.push(reply).objects_to_push == []  # announced again, as after a lost connection
    assert refusal(both.south.push, reply) == OTHERS
    assert {path.name for path in both.folder.glob("reply-*")} == {f"reply-{me.id}" for me in (north, both.south)}
