"""HL7 v2 with programs of other authors: our ORU^R01 to their receivers, and their senders to our listener.

hl7apy (PyPI) also validates the message; node-hl7-server and node-hl7-client (npm) are installed by `make viewer`. The
tests of the listener use the client of the library hl7 besides.
"""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from federation.system.process import free_port
from models.refusal import Refusal
from pipeline.clinic.records import Answer, Correction
from pipeline.clinic.results.oru_message import control_id_of, oru_message
from pipeline.clinic.store import new_id
from pipeline.feeds.mllp_sender import send_message
from pipeline.records.laboratory import PcrResult
from tests.helpers import scored_answers
from tests.helpers.program_output import next_line
from tests.pipeline.clinic.results.test_messages import PATIENT
from tests.pipeline.clinic.results.test_verified import decision
from tests.pipeline.feeds.listener_rig import Rig, result, running

ROOT = Path(__file__).resolve().parents[3]
MODULES, PROGRAM = ROOT / "viewer/node_modules", Path(__file__).with_name("node_hl7.cjs")
needs_node = pytest.mark.skipif(
    not (shutil.which("node") and (MODULES / "node-hl7-server").is_dir()),
    reason="Node.js or node-hl7-server is not installed (`make viewer`)",
)


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    folder = tmp_path_factory.mktemp("scan")
    scored_answers.write_scan(folder)
    at = tmp_path_factory.mktemp("answers") / new_id()
    made = scored_answers.answer_to(scored_answers.score_of(folder), scored_answers.series_of(folder), at)
    return replace(made, patient=PATIENT, accession="ACC-7")


# --- hl7apy ---


@pytest.mark.parametrize("verdict", [None, "accepted", "rejected", "corrected"])
def test_message_is_valid_for_another_library(verdict: Any, answer: Answer) -> None:
    """By structure, data types, lengths and cardinality of 2.5.1; only tables for own codes give warnings."""
    parser = pytest.importorskip("hl7apy.parser", reason="hl7apy is not installed")
    unusable = {"correction": Correction(lungs_usable=False)} if verdict == "corrected" else {}
    decided = replace(answer, decision=verdict and decision(verdict=verdict, **unusable))
    sent_text = oru_message(decided, earlier=[answer]).decode()
    message = parser.parse_message(sent_text, validation_level=1, find_groups=True)
    assert message.validate()
    results = message.oru_r01_patient_result.oru_r01_order_observation
    assert results.obr.obr_18.value == "ACC-7"
    assert len(results.oru_r01_observation) >= 8
    assert message.oru_r01_patient_result.oru_r01_patient.pid.pid_5.xpn_1.value == "CANARY"


def test_probability_next_to_1_is_valid_for_another_library(answer: Answer) -> None:
    parser = pytest.importorskip("hl7apy.parser", reason="hl7apy is not installed")
    extreme = replace(answer, score={**answer.score, "probability": {"severe": 0.99997}})
    message = parser.parse_message(oru_message(extreme).decode(), validation_level=1, find_groups=True)
    assert message.validate()
    (obx, *_) = message.oru_r01_patient_result.oru_r01_order_observation.oru_r01_observation
    assert (obx.obx.obx_2.value, obx.obx.obx_5.value) == ("SN", ">^99.9")


@contextmanager
def hl7apy_receiver(code: str, received: list[str]) -> Iterator[int]:
    mllp = pytest.importorskip("hl7apy.mllp", reason="hl7apy is not installed")
    from hl7apy.core import Message
    from hl7apy.parser import parse_message

    class Handler(mllp.AbstractHandler):  # type: ignore[name-defined]
        def reply(self) -> str:
            message = parse_message(self.incoming_message)
            received.append(message.msh.msh_10.value)
            answer = Message("ACK", version="2.5.1")
            answer.msh.msh_9 = "ACK^R01^ACK"
            answer.msa.msa_1, answer.msa.msa_2 = code, message.msh.msh_10
            return str(answer.to_mllp())

    server = mllp.MLLPServer("127.0.0.1", 0, {"ORU^R01^ORU_R01": (Handler,)})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("code", "outcome"), [("AA", ""), ("AE", "E_HL7_REFUSED"), ("AR", "E_HL7_BUSY")])
def test_receiver_of_hl7apy_gets_the_message(code: str, outcome: str, answer: Answer) -> None:
    received: list[str] = []
    with hl7apy_receiver(code, received) as port:
        assert sent(answer, port) == outcome
    assert received == [control_id_of(answer)]


def sent(answer: Answer, port: int) -> str:
    """Send the answer's message; return the code of the refusal, "" without one."""
    try:
        send_message(oru_message(answer), control_id_of(answer), "127.0.0.1", port, tls=None, timeout_seconds=60)
    except Refusal as refusal:
        return refusal.code
    return ""


# --- Node.js ---


def node(*arguments: object) -> list[str]:
    return ["node", str(PROGRAM), str(MODULES), *map(str, arguments)]


@needs_node
def test_receiver_of_node_hl7_gets_the_message_and_its_repetition(answer: Answer) -> None:
    port, pipe = free_port(), subprocess.PIPE
    with subprocess.Popen(node("receive", port), stdout=pipe, stderr=pipe, text=True) as receiver:
        try:
            assert next_line(receiver) == "listening"
            assert [sent(answer, port) for _ in range(2)] == ["", ""]
            lines = [next_line(receiver).split() for _ in range(2)]
        finally:
            receiver.kill()
    assert lines == [[control_id_of(answer), PATIENT.id]] * 2


@pytest.mark.slow
@needs_node
def test_sender_of_node_hl7_reaches_our_listener(tmp_path: Path) -> None:
    (tmp_path / "message.hl7").write_bytes(result())
    with running(Rig.make(tmp_path)) as rig:
        command = node("send", rig.port, tmp_path / "message.hl7")
        for _ in range(2):  # the repetition is recognised
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            assert done.stdout == "AA C1\n"
        assert len(rig.stored) == 1
        assert rig.read() == ([PcrResult("P-SECRET", datetime(2020, 4, 1, 8, 30), True)], [])
