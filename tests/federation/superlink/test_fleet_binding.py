"""Tests that a node's request names only its own messages, sessions and objects, with Flower's own database.

Two nodes at a real server: tests/e2e/test_binding.py.
"""

import hashlib
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.server.superlink.linkstate import InMemoryLinkState, SqlLinkState
from flwr.superlink.config_loader import get_federation_manager, get_objectstore_linkstate_factories
from sqlalchemy.event import listen, remove

from federation.superlink.fleet_binding import Announced, Trees, check
from models.refusal import Refusal

RUN = 5
SQLITE_VARIABLES = 32_766  # SQLite's default limit per statement
# Like Flower's node ids: up to 64 bits, stored as signed integers in its database.
NORTH, SOUTH = 2**64 - 7, 12


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def tree(root: str, *children: ObjectTree) -> ObjectTree:
    return ObjectTree(object_id=sha(root), children=children)


TASKS = {node: tree(f"task {node}", tree(f"records {node}", tree("model"))) for node in (NORTH, SOUTH)}
ANSWER = tree("answer of north", tree("its records"))


def signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SqlLinkState]:
    """Each node has received a message. North has announced its reply, and the ServerApp has not pulled it yet."""
    database = tmp_path / "state.db"
    _, factory = get_objectstore_linkstate_factories(str(database), get_federation_manager(is_simulation=False))
    state = factory.state()
    assert isinstance(state, SqlLinkState)
    for task in TASKS.values():
        state.object_store.preregister(RUN, task)
    with closing(sqlite3.connect(database)) as db:  # foreign keys are not enforced: no run and no nodes are needed
        for node, task in TASKS.items():
            row = (task.object_id, RUN, 1, signed(node))
            db.execute(
                "INSERT INTO message_ins (message_id, run_id, src_node_id, dst_node_id) VALUES (?, ?, ?, ?)", row
            )
        row = (ANSWER.object_id, RUN, signed(NORTH), 1, TASKS[NORTH].object_id)
        db.execute(
            "INSERT INTO message_res (message_id, run_id, src_node_id, dst_node_id, reply_to_message_id) "
            "VALUES (?, ?, ?, ?, ?)",
            row,
        )
        db.commit()
    yield state


@contextmanager
def statements(state: SqlLinkState) -> Iterator[list[int]]:
    """The number of variables of each statement that the database executes in this context."""
    found: list[int] = []
    with state.session() as session:
        engine = session.get_bind()

    def note(connection: object, cursor: object, statement: str, parameters: Sequence[object], *_: object) -> None:
        found.append(len(parameters))

    listen(engine, "before_cursor_execute", note)
    yield found
    remove(engine, "before_cursor_execute", note)


def announce(state: SqlLinkState) -> str:
    """Open the session for north's reply."""
    session = state.start_session(RUN)
    state.preregister_object_tree(ANSWER, session)
    return session


def push(
    node: int, *, announced: ObjectTree = ANSWER, to: int | None = None, **metadata: object
) -> PushMessagesRequest:
    fields = {
        **{"run_id": RUN, "message_id": announced.object_id, "src_node_id": node, "dst_node_id": 1},
        "reply_to_message_id": TASKS[to or node].object_id,
        **metadata,
    }
    message = Message(metadata=Metadata(**fields))  # type: ignore[arg-type]
    return PushMessagesRequest(node=Node(node_id=node), messages_list=[message], message_object_trees=[announced])


def judged(state: object, request: object, announced: Announced | None = None) -> bool:
    try:
        check(request, state, announced or Announced(), Trees())  # type: ignore[arg-type]
    except Refusal as refusal:
        assert refusal.code == "E_NOT_FOR_NODE"
        return False
    return True


def test_node_reads_only_objects_of_its_own_messages(state: SqlLinkState) -> None:
    def may_read(node: int, name: str, run: int = RUN) -> bool:
        return judged(state, PullObjectRequest(node=Node(node_id=node), run_id=run, object_id=sha(name)))

    for mine, other in ((NORTH, SOUTH), (SOUTH, NORTH)):
        assert all(may_read(mine, name) for name in (f"task {mine}", f"records {mine}", "model"))
        assert not any(may_read(mine, name) for name in (f"task {other}", f"records {other}", "elsewhere"))
        assert not may_read(mine, f"task {mine}", run=RUN + 1)
    assert not may_read(NORTH, "answer of north")
    assert not may_read(99, "model")


def test_object_id_has_only_one_valid_form(state: SqlLinkState) -> None:
    for id in (sha("model").upper(), f" {sha('model')}", "", "%"):
        assert not judged(state, PullObjectRequest(node=Node(node_id=NORTH), run_id=RUN, object_id=id))


def test_session_belongs_to_its_node_after_a_restart(state: SqlLinkState) -> None:
    """A restart forgets announced replies. Flower's database still has the reply until the ServerApp pulls it."""
    session = announce(state)

    def may_push(node: int, session: str = session) -> bool:
        request = PushObjectRequest(
            node=Node(node_id=node), run_id=RUN, session_id=session, object_id=sha("its records")
        )
        return judged(state, request)

    assert may_push(NORTH)
    assert not may_push(SOUTH)
    assert not may_push(NORTH, "")
    assert may_push(SOUTH, "over")  # Flower answers "not stored"


def test_session_belongs_to_its_node_after_the_reply_is_pulled(state: SqlLinkState) -> None:
    session = announce(state)
    with state.session():
        state.delete_messages({TASKS[NORTH].object_id})
    request = PushObjectRequest(node=Node(node_id=NORTH), run_id=RUN, session_id=session, object_id=sha("its records"))
    assert judged(state, request, Announced(sessions=deque([session])))
    assert not judged(state, request)  # without the announcement, the owner is unknown


def test_only_the_sender_can_announce_a_reply_again(state: SqlLinkState) -> None:
    announce(state)
    assert judged(state, push(NORTH))
    assert not judged(state, push(SOUTH))
    assert not judged(state, push(SOUTH, to=NORTH))
    with state.session():
        state.delete_messages({TASKS[NORTH].object_id})
    assert judged(state, push(NORTH), Announced(answers=deque([ANSWER.object_id])))
    assert not judged(state, push(SOUTH))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"src_node_id": NORTH},
        {"src_node_id": 1, "dst_node_id": NORTH, "reply_to_message_id": ""},
        {"reply_to_message_id": ""},
        {"reply_to_message_id": TASKS[NORTH].object_id},
        {"dst_node_id": NORTH},
        {"message_id": ""},
        {"message_id": TASKS[NORTH].object_id},
        {"message_id": sha("another")},
        {"run_id": RUN + 1},
    ],
)
def test_reply_with_one_false_field_is_refused(state: SqlLinkState, change: dict[str, object]) -> None:
    answer = tree("answer of south", tree("its own"), tree("model"))
    assert judged(state, push(SOUTH, announced=answer))
    assert not judged(state, push(SOUTH, announced=answer, **change))


@pytest.mark.parametrize("below", [TASKS[NORTH], TASKS[SOUTH], ANSWER])
def test_reply_that_contains_another_message_is_refused(state: SqlLinkState, below: ObjectTree) -> None:
    announce(state)
    deep = tree("answer of south", tree("records", tree("array", below)))
    assert not judged(state, push(SOUTH, announced=deep))


def test_lookup_of_many_objects_is_split_into_several_statements(state: SqlLinkState) -> None:
    objects = [tree(f"own {number}") for number in range(SQLITE_VARIABLES + 1)]
    with statements(state) as found:
        assert judged(state, push(SOUTH, announced=tree("answer of south", *objects)))
        assert not judged(state, push(SOUTH, announced=tree("answer of south", *objects, TASKS[NORTH])))
    assert max(found) <= SQLITE_VARIABLES < sum(found)


@pytest.mark.slow
def test_run_is_visible_only_to_nodes_that_received_its_messages(state: SqlLinkState) -> None:
    assert judged(state, GetRunRequest(node=Node(node_id=NORTH), run_id=RUN))
    assert not judged(state, GetRunRequest(node=Node(node_id=NORTH), run_id=RUN + 1))
    assert not judged(state, GetRunRequest(node=Node(node_id=99), run_id=RUN))


def test_unknown_request_is_refused(state: SqlLinkState) -> None:
    assert judged(state, PullMessagesRequest(node=Node(node_id=NORTH)))
    assert not judged(state, None)
    assert not judged(state, Metadata())


def test_state_without_a_database_is_an_error() -> None:
    make: Callable[..., InMemoryLinkState] = InMemoryLinkState.__new__
    with pytest.raises(TypeError):
        check(PullMessagesRequest(node=Node(node_id=NORTH)), make(InMemoryLinkState), Announced(), Trees())


@pytest.mark.parametrize(("most", "look_ups"), [(1, 4), (2, 2)])
def test_cache_of_object_trees_is_bounded(state: SqlLinkState, most: int, look_ups: int) -> None:
    trees = Trees(most)
    with state.session() as session, statements(state) as found:
        for task in (*TASKS.values(), *TASKS.values()):
            assert len(trees.of(session, task.object_id)) == 3
    assert len(found) == look_ups
