"""The systems that the clinic exchanges data with: their addresses, what was delivered, and whether they respond now.

A test sends nothing of a patient: C-ECHO, or over DICOMweb a search for one study whose answer is dropped; the
capability statement of a FHIR server; a connection to our own receiver. To a receiver of HL7 messages it only connects,
because that takes messages for results.
"""

import socket
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from models.refusal import Refusal
from pipeline.clinic.reasons import NO_SUCH_CONNECTION, RECEIVER_CLOSED
from pipeline.clinic.records import moment
from pipeline.clinic.settings import Clinic, FhirResultsTable, Hl7ResultsTable, ReceiverTable
from pipeline.clinic.store import Store
from pipeline.feeds.fhir_client import FhirClient, GoneError
from pipeline.feeds.mllp_sender import check_connection
from pipeline.feeds.reasons import FHIR_ANSWER
from pipeline.pacs.pacs import connect
from pipeline.site.pacs_settings import PacsTable
from pipeline.site.tls import as_client

Name = Literal["search", "receiver", "pacs", "fhir", "hl7"]  # the last three: targets of deliveries
NAMES: tuple[Name, ...] = get_args(Name)
TEST_SECONDS = 10.0
_COUNTED = "SELECT target, state, count(*) AS count, max(sent_at) AS last FROM deliveries GROUP BY target, state"


def connections(clinic: Clinic, store: Store) -> list[dict[str, Any]]:
    """Return each system as the API (v1) does: what clinic.toml says of it, and the deliveries to it by state.

    Raises Refusal E_CLINIC_FILE.
    """
    rows = store.database.rows(_COUNTED)
    found = []
    for name in NAMES:
        of_target = [row for row in rows if row["target"] == name]
        last = max((row["last"] for row in of_target if row["last"]), default=None)
        kind, address, encrypted = _described(clinic, name)
        found.append(
            {
                "name": name,
                "kind": kind,
                "address": address,
                "encrypted": encrypted,
                "deliveries": {row["state"]: row["count"] for row in of_target},
                "last_sent_at": moment(datetime.fromisoformat(last) if last else None),
            }
        )
    return found


def check(clinic: Clinic, name: Name) -> None:
    """Return if the system responds. Raises Refusal E_NO_SUCH_CONNECTION if it is not set up, and others."""
    _CHECKS[name](clinic)


def _described(clinic: Clinic, name: Name) -> tuple[str, str, bool]:
    """Return kind, address and encryption of a system; ('', '', False) if clinic.toml does not set it up."""
    results, receiver = clinic.settings.results, clinic.settings.receiver
    found = ("", "", False)
    if name == "search":
        try:
            found = _pacs(clinic.pacs[0]) if clinic.pacs else found
        except Refusal:  # the node's folder cannot be opened; a test says why
            found = ("node", "", False)
    elif name == "pacs" and results.send != "off":
        found = _pacs(results.pacs)
    elif name == "receiver" and receiver.enabled:
        found = "dimse", f"{receiver.aet}@{receiver.host}:{receiver.port}", receiver.certificate is not None
    elif name == "fhir" and results.fhir:
        found = "fhir", results.fhir.url, results.fhir.url.startswith("https:")
    elif name == "hl7" and results.hl7:
        found = "hl7", f"{results.hl7.host}:{results.hl7.port}", results.hl7.ca_certificate is not None
    return found


def _pacs(table: PacsTable) -> tuple[str, str, bool]:
    if table.dicomweb:
        return "dicomweb", table.dicomweb.url, table.dicomweb.url.lower().startswith("https:")
    assert table.dimse is not None
    dimse = table.dimse
    return "dimse", f"{dimse.called_aet}@{dimse.host}:{dimse.port}", dimse.ca_certificate is not None


def _check_search(clinic: Clinic) -> None:
    if clinic.pacs is None:
        raise Refusal(NO_SUCH_CONNECTION)
    _echo(*clinic.pacs)


def _check_pacs(clinic: Clinic) -> None:
    if clinic.settings.results.send == "off":
        raise Refusal(NO_SUCH_CONNECTION)
    _echo(clinic.settings.results.pacs, clinic.folder)


def _echo(table: PacsTable, folder: Path) -> None:
    table = table.model_copy(deep=True)
    for each in (table.dicomweb, table.dimse):
        if each is not None:
            each.timeout_seconds = min(each.timeout_seconds, TEST_SECONDS)
    with connect(table, folder) as pacs:
        pacs.echo()


def _check_receiver(clinic: Clinic) -> None:
    table: ReceiverTable = clinic.settings.receiver
    if not table.enabled:
        raise Refusal(NO_SUCH_CONNECTION)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(table.host, table.host)  # noqa: S104
    try:
        socket.create_connection((host, table.port), timeout=TEST_SECONDS).close()
    except OSError as error:
        raise Refusal(RECEIVER_CLOSED, private=type(error).__name__) from None


def _check_fhir(clinic: Clinic) -> None:
    table: FhirResultsTable | None = clinic.settings.results.fhir
    if table is None:
        raise Refusal(NO_SUCH_CONNECTION)
    seconds = min(table.timeout_seconds, TEST_SECONDS)
    short = table.server.model_copy(update={"timeout_seconds": seconds, "retries": 0})
    try:
        with FhirClient(short, clinic.folder) as server:
            server.get_json(f"{server.base}/metadata")
    except GoneError:
        raise Refusal(FHIR_ANSWER, private="no capability statement at this address") from None


def _check_hl7(clinic: Clinic) -> None:
    table: Hl7ResultsTable | None = clinic.settings.results.hl7
    if table is None:
        raise Refusal(NO_SUCH_CONNECTION)
    tls = None
    if table.ca_certificate:
        paths = {"authority": table.ca_certificate, "certificate": table.certificate, "key": table.key}
        tls = as_client(clinic.folder, **paths)
    check_connection(table.host, table.port, tls=tls, timeout_seconds=min(table.timeout_seconds, TEST_SECONDS))


_CHECKS: dict[Name, Callable[[Clinic], None]] = {
    "search": _check_search,
    "receiver": _check_receiver,
    "pacs": _check_pacs,
    "fhir": _check_fhir,
    "hl7": _check_hl7,
}
