"""Send one HL7 v2 message over MLLP and wait for its acknowledgement (HL7 v2.5.1, 2.9 and 2.14).

A message without an acknowledgement may have arrived: it is sent again with the same control id, by which the receiver
can tell that it has it.
"""

import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from models.refusal import Refusal
from pipeline.feeds import reasons
from pipeline.feeds.mllp import END, START, frame

MAX_BYTES = 64_000  # of an acknowledgement
_ACCEPTED, _ERRORS, _REJECTED = {"AA", "CA"}, {"AE", "CE"}, {"AR", "CR"}
# HL7 table 0357. An error may pass if the receiver's record was locked or the receiver itself failed; a rejection stays
# if the receiver does not take such messages at all.
_PASSING, _STAYING = {"206", "207"}, {"200", "201", "202", "203"}


def send_message(
    message: bytes, control_id: str, host: str, port: int, *, tls: ssl.SSLContext | None, timeout_seconds: float
) -> None:
    """Send a message; return when it was accepted.

    Raises Refusal E_HL7_SILENT if it can be sent again later (no connection, no whole answer), E_HL7_BUSY if the
    receiver says so, E_HL7_UNTRUSTED, E_HL7_REFUSED if the receiver refuses its content.
    """
    deadline = time.monotonic() + timeout_seconds
    with _connected(host, port, tls, timeout_seconds) as connection:
        with suppress(OSError):  # why the receiver ended the connection can still be read: a TLS alert
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
    except ssl.SSLError as error:  # without a reason the connection ended; no word about certificates
        is_over = isinstance(error, ssl.SSLEOFError) or not error.reason
        raise Refusal(reasons.HL7_SILENT if is_over else reasons.HL7_UNTRUSTED, private=type(error).__name__) from None
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
    """Raise Refusal E_HL7_SILENT, E_HL7_BUSY or E_HL7_REFUSED unless this message was accepted."""
    lines = re.split(r"[\r\n]+", answer.decode("latin-1"))
    separator = next((line[3:4] for line in lines if line.startswith("MSH")), "")
    found = [line.split(separator) for line in lines if line.startswith("MSA")] if separator else []
    code, theirs = (each.strip() for each in (*found[0][1:3], "", "")[:2]) if len(found) == 1 else ("", "")
    if theirs != control_id or code not in _ACCEPTED | _ERRORS | _REJECTED:
        raise Refusal(reasons.HL7_SILENT, private=f"acknowledgement {code[:2]!r}")
    if code in _ACCEPTED:
        return
    errors = {_error_number(line, separator) for line in lines if line.startswith("ERR")}
    is_final = bool(errors & _STAYING) if code in _REJECTED else not errors & _PASSING
    raise Refusal(reasons.HL7_REFUSED if is_final else reasons.HL7_BUSY, private=f"{code}, errors {sorted(errors)}")


def _error_number(segment: str, separator: str) -> str:
    """Return the number of an ERR segment: ERR-3.1 (from version 2.5 on), "" if it has none."""
    fields = segment.split(separator)
    found = re.match(r"\d{1,5}", fields[3], re.ASCII) if len(fields) > 3 else None
    return found[0] if found else ""
