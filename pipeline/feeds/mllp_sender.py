"""Send one HL7 v2 message over MLLP and wait for its acknowledgement (HL7 v2.5.1, 2.9 and 2.14).

A message without an acknowledgement may have arrived: it is sent again with the same control id, by which the receiver
can tell that it has it.
"""

import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager

from models.refusal import Refusal
from pipeline.feeds import reasons
from pipeline.feeds.mllp import END, START, frame

MAX_BYTES = 64_000  # of an acknowledgement
_ACCEPTED, _REFUSED = {"AA", "CA"}, {"AE", "CE"}


def send_message(
    message: bytes, control_id: str, host: str, port: int, *, tls: ssl.SSLContext | None, timeout_seconds: float
) -> None:
    """Send a message; return when it was accepted.

    Raises Refusal E_HL7_SILENT if it can be sent again later (no connection, no answer, AR or CR), E_HL7_UNTRUSTED,
    E_HL7_REFUSED if the receiver refuses its content (AE, CE).
    """
    deadline = time.monotonic() + timeout_seconds
    with _connected(host, port, tls, timeout_seconds) as connection:
        connection.sendall(frame(message))
        answer = _read(connection, deadline)
    _judge(answer, control_id)


def check_connection(host: str, port: int, *, tls: ssl.SSLContext | None, timeout_seconds: float) -> None:
    """Return if the receiver accepts a connection; send nothing. Raises Refusal E_HL7_SILENT, E_HL7_UNTRUSTED."""
    with _connected(host, port, tls, timeout_seconds):
        pass


@contextmanager
def _connected(host: str, port: int, tls: ssl.SSLContext | None, timeout_seconds: float) -> Iterator[socket.socket]:
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_seconds) as plain,
            tls.wrap_socket(plain, server_hostname=host) if tls else plain as connection,
        ):
            yield connection
    except ssl.SSLError as error:
        raise Refusal(reasons.HL7_UNTRUSTED, private=type(error).__name__) from None
    except OSError as error:
        raise Refusal(reasons.HL7_SILENT, private=type(error).__name__) from None


def _read(connection: socket.socket, deadline: float) -> bytes:
    """Read one frame. Raises OSError, Refusal E_HL7_SILENT."""
    received = b""
    while END not in received:
        if len(received) > MAX_BYTES or not (left := max(0.0, deadline - time.monotonic())):
            raise Refusal(reasons.HL7_SILENT, private="no whole acknowledgement")
        connection.settimeout(left)
        chunk = connection.recv(4096)
        if not chunk:
            raise Refusal(reasons.HL7_SILENT, private="the connection ended")
        received += chunk
    return received.partition(START)[2].partition(END)[0]


def _judge(answer: bytes, control_id: str) -> None:
    """Raise Refusal E_HL7_SILENT or E_HL7_REFUSED unless this message was accepted."""
    lines = re.split(r"[\r\n]+", answer.decode("latin-1"))
    separator = next((line[3:4] for line in lines if line.startswith("MSH")), "")
    found = [line.split(separator) for line in lines if line.startswith("MSA")] if separator else []
    code, theirs = (each.strip() for each in (*found[0][1:3], "", "")[:2]) if len(found) == 1 else ("", "")
    if theirs == control_id and code in _REFUSED:
        raise Refusal(reasons.HL7_REFUSED)
    if theirs != control_id or code not in _ACCEPTED:
        raise Refusal(reasons.HL7_SILENT, private=f"acknowledgement {code[:2]!r}")
