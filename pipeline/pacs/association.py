"""Open DICOM associations with a PACS (PS3.8), and report failures with coded reasons."""

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pydicom import Dataset, uid
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from models.refusal import Reason, Refusal
from pipeline.imaging.functional_groups import CT_CLASSES
from pipeline.pacs import reasons
from pipeline.pacs.receiver import PDU_BYTES, TRANSFER_SYNTAXES, Inbox, guard
from pipeline.site.pacs_settings import DimseTable
from pipeline.site.tls import as_client, as_server

FIND = StudyRootQueryRetrieveInformationModelFind
GET = StudyRootQueryRetrieveInformationModelGet
MOVE = StudyRootQueryRetrieveInformationModelMove
_SERVICES = {Verification: "C-ECHO", FIND: "C-FIND", GET: "C-GET", MOVE: "C-MOVE"}
_IMAGES = "C-GET of CT images"
_QUERY_SYNTAXES = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian]

# Why an association is rejected (PS3.8, table 9-21): result; source and diagnostic.
_REJECTED_FOR_NOW = 2
_OUR_TITLE_UNKNOWN, _ITS_TITLE_WRONG = (1, 3), (1, 7)
# Statuses (PS3.7, annex C; PS3.4, tables C.4-1 to C.4-3).
NOT_AUTHORISED, OUT_OF_RESOURCES = 0x0124, (0xA700, 0xA701)


@dataclass(frozen=True)
class Tls:
    """TLS contexts for our associations and, if we have a certificate, for our receiver."""

    client: ssl.SSLContext
    server: ssl.SSLContext | None

    @classmethod
    def load(cls, table: DimseTable, folder: Path) -> "Tls | None":
        """Load the contexts; None if the table configures no TLS.

        The receiver requires a certificate of the same authority.

        Raises Refusal E_PACS_FILE.
        """
        authority, certificate, key = table.ca_certificate, table.certificate, table.key
        if authority is None:
            return None
        client = as_client(folder, authority=authority, certificate=certificate, key=key)
        if certificate is None or key is None:
            return cls(client, None)
        return cls(client, as_server(folder, authority=authority, certificate=certificate, key=key))


@contextmanager
def associate(
    table: DimseTable, tls: Tls | None, services: tuple[uid.UID, ...], inbox: Inbox | None = None
) -> Iterator[Association]:
    """Open an association that supports all `services`; abort it if the block raises.

    With an inbox, the PACS may send CT images over it (C-GET), in their stored compression.

    Raises Refusal E_PACS_SILENT, E_PACS_NAME, E_PACS_REFUSED, E_PACS_CLOSED, E_PACS_AUTH, E_PACS_UNTRUSTED,
    E_PACS_SERVICE.
    """
    entity = AE(ae_title=table.calling_aet)
    entity.connection_timeout = entity.acse_timeout = table.connect_seconds
    entity.dimse_timeout = entity.network_timeout = table.timeout_seconds
    for service in services:
        entity.add_requested_context(service, _QUERY_SYNTAXES)
    handlers: list[evt.EventHandlerType] = [(evt.EVT_CONN_OPEN, guard(table.timeout_seconds))]
    if inbox:
        for ct, syntax in product(sorted(CT_CLASSES), TRANSFER_SYNTAXES):  # at most 128 contexts (PS3.8, 9.3.2.2)
            entity.add_requested_context(ct, syntax)
        handlers.append((evt.EVT_C_STORE, inbox.store))
    began = time.monotonic()
    try:
        association = entity.associate(
            table.host,
            table.port,
            ae_title=table.called_aet,
            max_pdu=PDU_BYTES,
            ext_neg=[build_role(ct, scp_role=True) for ct in CT_CLASSES] if inbox else None,
            tls_args=(tls.client, table.host) if tls else None,
            evt_handlers=handlers,
        )
    except OSError as error:  # the host name cannot be resolved
        raise Refusal(reasons.PACS_NAME, private=f"{table.host}: {error.strerror}") from error
    if not association.is_established:
        raise _why_not(association, table, tls, time.monotonic() - began)
    keep_answers(association)
    try:
        _check_services(association, services, inbox)
        yield association
    except BaseException:
        association.abort()
        raise
    association.release()


def keep_answers(association: Association) -> None:
    """Prevent pynetdicom's own thread from taking messages that a caller waits for.

    pynetdicom pauses this thread, which polls for requests, while a caller waits for a response. If the thread is about
    to poll at that moment, it still takes the first response and drops it silently: one response in a hundred was lost.
    """
    provider = association.dimse
    wait = provider.get_msg
    provider.get_msg = lambda block=False: wait(block) if block else (None, None)  # type: ignore[method-assign]


def _check_services(association: Association, services: tuple[uid.UID, ...], inbox: Inbox | None) -> None:
    """Check that the PACS accepted all services. Raises Refusal E_PACS_SERVICE."""
    accepted = {context.abstract_syntax for context in association.accepted_contexts if context.as_scu}
    for service in services:
        if service not in accepted:
            raise Refusal(reasons.PACS_SERVICE, service=_name(service))
    if inbox and not any(context.as_scp for context in association.accepted_contexts):
        raise Refusal(reasons.PACS_SERVICE, service=_IMAGES)


def _name(service: uid.UID) -> str:
    return _SERVICES.get(service, f"C-STORE of {service.name}")


def _why_not(association: Association, table: DimseTable, tls: Tls | None, waited: float) -> Refusal:
    """Return the reason why no association was established after `waited` seconds."""
    if association.is_rejected:
        answer = association.acceptor.primitive
        assert answer is not None
        if answer.result == _REJECTED_FOR_NOW:
            return Refusal(reasons.PACS_SILENT, private="the PACS accepts no further association at the moment")
        why = (answer.result_source, answer.diagnostic)
        details: dict[tuple[int | None, int | None], str] = {
            _OUR_TITLE_UNKNOWN: f"it does not know our AE title, {table.calling_aet}",
            _ITS_TITLE_WRONG: f"its AE title is not {table.called_aet}",
        }
        return Refusal(reasons.PACS_AUTH, private=details.get(why, f"association rejected (PS3.8, table 9-21): {why}"))
    if association.rejected_contexts:
        services = {_name(each.abstract_syntax) for each in association.rejected_contexts if each.abstract_syntax}
        return Refusal(reasons.PACS_SERVICE, service=", ".join(sorted(services)))
    if tls and (fault := _tls_fault(tls.client, table)):
        return Refusal(reasons.PACS_UNTRUSTED, private=fault)
    reason = reasons.PACS_SILENT if waited >= 0.9 * table.connect_seconds else _fault_of(table)
    return Refusal(reason, private=f"{table.host}, port {table.port}: no association")


def _fault_of(table: DimseTable) -> Reason:
    """Find what is wrong with a second connection, because pynetdicom does not report it."""
    try:
        socket.create_connection((table.host, table.port), timeout=min(table.connect_seconds, 3.0)).close()
    except socket.gaierror:
        return reasons.PACS_NAME
    except ConnectionRefusedError:
        return reasons.PACS_REFUSED
    except OSError:
        return reasons.PACS_SILENT
    return reasons.PACS_CLOSED


def _tls_fault(context: ssl.SSLContext, table: DimseTable) -> str | None:
    """Find the TLS error with a second handshake, because pynetdicom does not report it."""
    try:
        with (
            socket.create_connection((table.host, table.port), timeout=table.connect_seconds) as plain,
            context.wrap_socket(plain, server_hostname=table.host) as encrypted,
        ):
            encrypted.settimeout(min(table.connect_seconds, 3.0))
            encrypted.recv(1)  # with TLS 1.3 a PACS rejects our certificate only now
    except ssl.SSLError as error:
        return error.reason or type(error).__name__
    except OSError:
        pass
    return None


def failure(status: Dataset) -> Refusal:
    """Return the refusal for a DIMSE status other than success; an empty status means a broken association."""
    if "Status" not in status:
        return Refusal(reasons.PACS_SILENT, private="the association was broken")
    detail = f"status {status.Status:04X}H"
    if status.Status == NOT_AUTHORISED:
        return Refusal(reasons.PACS_AUTH, private=detail)
    return Refusal(reasons.PACS_SILENT if status.Status in OUT_OF_RESOURCES else reasons.PACS_ANSWER, private=detail)
