"""Control: without gateway and sandbox, each leak carries data out. The scanner finds all but LEAVES_UNSEEN."""

import functools
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

from federation.protocol.flat_weights import WEIGHTS
from tests.canary.leaks import AROUND, LEAKS, PIXELS, Loot
from tests.canary.scanner import Planted, Scanner
from tests.canary.table import LEAVES_UNSEEN
from tests.canary.test_scanner import body

THROUGH = [name for name in LEAKS if name not in AROUND]


def loot(host: str = "127.0.0.1", port: int = 0, drops: tuple[str, ...] = ()) -> Loot:
    return Loot(
        name="Bergqvist^Sylvi",
        identifier="4401728395566",
        uid="1.2.826.0.1.3680043.8.498.7741029385566120",
        laboratory="17,4401728395566,2020-04-03T11:20,POSITIVE",
        pixels=body(size=PIXELS) / 1000,
        source=__file__,
        drops=drops,
        host=host,
        port=port,
    )


@functools.cache
def scanner() -> Scanner:
    taken = loot()
    return Scanner([Planted("it", (taken.name, taken.identifier, taken.uid, taken.laboratory), (taken.pixels,))])


def exchange() -> tuple[Message, Message]:
    """Return a task, and the reply to it without a leak."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    request = Message(RecordDict(), dst_node_id=1, message_type="train")
    request.metadata.__dict__["_message_id"] = "1"
    rng = np.random.default_rng(1)
    means = Array(rng.normal(size=400).astype(np.float32))
    content = RecordDict(
        {
            "arrays": ArrayRecord({WEIGHTS: Array(rng.normal(0, 0.03, 5_000).astype(np.float32))}),
            "buffers": ArrayRecord({"batch_norm.running_mean": means}),
            "metrics": MetricRecord({"train_loss": 0.5, "num-examples": 8}),
        }
    )
    return request, Message(content, reply_to=request)


def sent(message: Message) -> bytes:
    """Return the bytes of a message as Flower sends them, including its metadata."""
    from flwr.common.serde import message_to_proto

    objects = get_all_nested_objects(message).values()
    bare = message_to_proto(message).metadata.SerializeToString()
    return bare + b"".join(each.deflate() for each in objects)


def test_reply_without_leak_has_no_findings() -> None:
    assert scanner().scan(sent(exchange()[1])) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", THROUGH)
def test_leak_in_reply_is_found_without_gateway(name: str) -> None:
    request, reply = exchange()
    clean = sent(reply)
    try:
        reply = LEAKS[name](loot(), reply, request) or reply
    except ValueError as error:  # Flower answers with this error if an app raises
        reply = Message(Error(1, f"{type(error)}{error}"), reply_to=request)
    assert sent(reply) != clean
    assert bool(scanner().scan(sent(reply))) == (name not in LEAVES_UNSEEN)


def test_leak_to_another_port_arrives_without_sandbox() -> None:
    arrived = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            connection, _ = listener.accept()
            with connection:
                arrived.append(connection.recv(1000))

        thread = threading.Thread(target=take)
        thread.start()
        LEAKS["another port"](loot(port=listener.getsockname()[1]), *exchange()[::-1])
        thread.join()
    assert scanner().scan(arrived[0])


def test_leaked_datagram_arrives_without_sandbox() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        LEAKS["a datagram"](loot(port=listener.getsockname()[1]), *exchange()[::-1])
        assert scanner().scan(listener.recv(1000))


def test_leaked_file_is_written_without_sandbox(tmp_path: Path) -> None:
    drops = (str(tmp_path / "drop"), str(tmp_path / "not there" / "drop"))
    LEAKS["a file elsewhere"](loot(drops=drops), *exchange()[::-1])
    assert scanner().scan((tmp_path / "drop").read_bytes())


def test_hospital_files_are_readable_without_sandbox() -> None:
    request, reply = exchange()
    LEAKS["the hospitals own files"](loot(), reply, request)
    assert reply.content.config_records["notes"]["file"] == Path(__file__).read_bytes()
