"""Answer requests: identify the caller, check its rights, and forward or refuse the request."""

import asyncio
import base64
import binascii
import logging
import sqlite3
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from cryptography import x509
from pydantic import ValidationError

from federation.enrolment import reasons as enrolment_reasons
from federation.enrolment.invitations import JoinRequest, accept, renew
from federation.enrolment.peers import register, roster
from federation.enrolment.registry import Holder, holder
from federation.flower.addresses import HEADERS, PREFIX, PUBLIC_KEY_HEADER, TIMESTAMP_HEADER
from federation.ingress import reasons
from federation.protocol.versions import VERSION_HEADER, who_must_upgrade
from federation.secure_aggregation import reasons as secagg_reasons
from federation.secure_aggregation.messages import MAX_BYTES
from federation.secure_aggregation.roster import PeerKey
from federation.superlink import reasons as superlink_reasons
from federation.superlink.control import REFUSED_HEADER, ServerConfig, ca_certificate
from federation.superlink.masked_address import (
    PATH,
    ROUND_HEADER,
    SITE_HEADER,
    STEPS,
    WORD_HEADER,
    read_address,
)
from federation.system.process import LOOPBACK
from models.refusal import Reason, Refusal
from pipeline.site.study_server import MAX_AHEAD_SECONDS, MAX_BEHIND_SECONDS

FLEET = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
CONNECT = f"{PREFIX}activate-node"
# Flower splits arrays into objects of 5 MiB. A node's requests are at most a few of them long.
MAX_BODY_BYTES = 16 * 2**20
MAX_FORM_BYTES = 16 * 2**10
# Long enough for an object of 5 MiB over a connection of 0.2 Mbit/s.
REQUEST_SECONDS = 300.0
FORM_SECONDS = 10.0
MASKED_SECONDS = 15.0  # the coordinator holds a question for half of it
MAX_REQUESTS_OF_SITE = 16
MAX_TRIES_A_MINUTE = 10

_STATUS: dict[Reason, int] = {
    reasons.NO_CERTIFICATE: 401,
    enrolment_reasons.CERTIFICATE_UNKNOWN: 401,
    enrolment_reasons.CERTIFICATE_EXPIRED: 401,
    enrolment_reasons.CERTIFICATE_REVOKED: 401,
    reasons.NODE_KEY: 401,
    reasons.CLOCK: 401,
    reasons.BODY_SIZE: 413,
    # Flower's nodes retry after these three.
    reasons.SUPERLINK_SILENT: 502,
    superlink_reasons.SERVER_UNREACHABLE: 502,
    reasons.DOOR_BUSY: 503,
    reasons.TOO_SLOW: 504,
}

log = logging.getLogger("fedthorax.door")


class Ingress:
    """The handler of all requests to the server."""

    def __init__(
        self, folder: Path, config: ServerConfig, known: sqlite3.Connection, session: aiohttp.ClientSession
    ) -> None:
        self._folder = folder
        self._authority = ca_certificate(folder).read_bytes()
        self._superlink = f"https://{LOOPBACK}:{config.control_port}"
        self._behind_nginx = config.socket is not None
        self._known = known
        self._session = session
        self._under_way: Counter[str] = Counter()
        self._tries: Counter[str] = Counter()
        self._minute = 0
        self._ways: dict[tuple[str, str], Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]] = {
            **{("POST", path): self._fleet for path in FLEET},
            **{("POST", PATH + step): self._masked for step in STEPS},
            ("POST", PATH + "peers"): self._peers,
            ("GET", "/enrolment/ca.crt"): self._show_authority,
            ("POST", "/enrolment/join"): self._join,
            ("POST", "/enrolment/renew"): self._renew,
        }

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. A refusal has Flower's error format: {"code": status, "detail": E_..., "extra": text}."""
        try:
            way = self._ways.get((request.method, request.raw_path))
            if way is None:
                raise Refusal(reasons.NO_WAY)
            return await way(request)
        except Refusal as refusal:
            status = _STATUS.get(refusal.reason, 403)
            self._log("refused", request, refusal.code, refusal.says)
            content = {"code": status, "detail": refusal.code, "extra": refusal.says}
            return web.json_response(content, status=status, headers={"Connection": "close"})

    # --- the Fleet API

    async def _fleet(self, request: web.BaseRequest) -> web.StreamResponse:
        node = self._node(request)
        _check_signed_headers(request, node)
        if request.raw_path == CONNECT:
            _check_version(request)
        if request.content_length is None or request.content_length > MAX_BODY_BYTES:
            raise Refusal(reasons.BODY_SIZE, megabytes=MAX_BODY_BYTES // 2**20)
        with self._one_of_few(node.site):
            return await self._pass_on(request)

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        """Stream the request to the SuperLink and its answer back, with at most a few hundred kilobytes in memory."""
        response = web.StreamResponse()
        # If a header appears twice, the first is forwarded, because the first was checked.
        sent = {name.lower(): request.headers[name] for name in request.headers if _travels(name)}
        try:
            async with (
                asyncio.timeout(REQUEST_SECONDS),
                self._session.post(self._superlink + request.raw_path, data=request.content, headers=sent) as answer,
            ):
                if code := answer.headers.get(REFUSED_HEADER):
                    self._log("refused", request, code)
                response.set_status(answer.status)
                response.headers.update({name: value for name, value in answer.headers.items() if _travels(name)})
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response
        except (aiohttp.ClientError, TimeoutError) as error:
            if response.prepared:  # no error can be sent any more; the node retries after an incomplete answer
                raise ConnectionResetError from error
            if isinstance(error, TimeoutError) and not request.content.at_eof():
                raise Refusal(reasons.TOO_SLOW, seconds=REQUEST_SECONDS) from error
            raise Refusal(reasons.SUPERLINK_SILENT) from error

    # --- masked rounds

    async def _peers(self, request: web.BaseRequest) -> web.StreamResponse:
        """Store the key of the caller's gateway, and return the list of all hospitals with theirs."""
        node = self._node(request)
        try:
            form = PeerKey.model_validate_json(await _read_form(request))
        except ValidationError as error:
            raise Refusal(secagg_reasons.SECAGG_MESSAGE) from error
        await asyncio.to_thread(register, self._folder, node.site, form.key)
        found = roster(self._folder, self._known)
        return web.Response(body=found.content, content_type="application/json")

    async def _masked(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass a message of a masked round on to the process that runs the study, with the caller's name."""
        node = self._node(request)
        if request.content_length is None or request.content_length > MAX_BYTES:
            raise Refusal(reasons.BODY_SIZE, megabytes=round(MAX_BYTES / 2**20, 2))
        with self._one_of_few(node.site):
            if (address := read_address(self._folder)) is None:
                raise Refusal(reasons.SUPERLINK_SILENT)  # no study sums masked updates now
            headers = {SITE_HEADER: node.site, WORD_HEADER: address.word}
            headers[ROUND_HEADER] = request.headers.get(ROUND_HEADER, "")[:64]
            try:
                async with (
                    asyncio.timeout(FORM_SECONDS + MASKED_SECONDS),
                    self._session.post(
                        f"http://{LOOPBACK}:{address.port}{request.raw_path}",
                        data=await request.read(),
                        headers=headers,
                    ) as answer,
                ):
                    body = await answer.read()
                    if answer.status == 204:
                        return web.Response(status=204)
                    return web.Response(status=answer.status, body=body, content_type="application/json")
            except (aiohttp.ClientError, TimeoutError) as error:
                raise Refusal(reasons.SUPERLINK_SILENT) from error

    @contextmanager
    def _one_of_few(self, site: str) -> Iterator[None]:
        if self._under_way[site] >= MAX_REQUESTS_OF_SITE:
            raise Refusal(reasons.DOOR_BUSY)
        self._under_way[site] += 1
        try:
            yield
        finally:
            self._under_way[site] -= 1

    # --- the caller

    def _node(self, request: web.BaseRequest) -> Holder:
        """Return the site that the caller's certificate was issued to, if it has access."""
        node = self._holder(request)
        node.judge()
        return node

    def _holder(self, request: web.BaseRequest) -> Holder:
        certificate = self._certificate(request)
        if certificate is None:
            raise Refusal(reasons.NO_CERTIFICATE)
        try:
            return holder(self._known, x509.load_der_x509_certificate(certificate))
        except ValueError as error:
            raise Refusal(enrolment_reasons.CERTIFICATE_UNKNOWN) from error

    def _certificate(self, request: web.BaseRequest) -> bytes | None:
        """Return the caller's certificate (DER). TLS or nginx has proven that the caller has its key."""
        if self._behind_nginx:
            pem = unquote(request.headers.get("X-Client-Certificate", ""))
            try:
                return ssl.PEM_cert_to_DER_cert(pem) if pem else None
            except ValueError as error:
                raise Refusal(enrolment_reasons.CERTIFICATE_UNKNOWN) from error
        tls = request.transport.get_extra_info("ssl_object") if request.transport else None
        return tls.getpeercert(binary_form=True) if tls else None

    def _address(self, request: web.BaseRequest) -> str:
        if self._behind_nginx:
            return request.headers.get("X-Real-IP", "?")
        return request.remote or "?"

    def _log(self, what: str, request: web.BaseRequest, *words: str) -> None:
        try:
            site = self._holder(request).site
        except Refusal:
            site = "?"
        log.info(
            "%s site=%s from=%s %.10s %.80r  %s",
            *(what, site, self._address(request), request.method, request.raw_path),
            ": ".join(words),
        )

    # --- enrolment

    async def _show_authority(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(body=self._authority, content_type="application/x-pem-file")

    async def _join(self, request: web.BaseRequest) -> web.StreamResponse:
        self._count_try(self._address(request))
        try:
            form = JoinRequest.model_validate_json(await _read_form(request))
        except ValidationError as error:
            raise Refusal(enrolment_reasons.INVITATION) from error
        site, certificate = await asyncio.to_thread(accept, self._folder, form)
        self._log("joined", request, site)
        return web.json_response({"site": site, "certificate": certificate})

    async def _renew(self, request: web.BaseRequest) -> web.StreamResponse:
        node = self._node(request)
        certificate = await asyncio.to_thread(renew, self._folder, node)
        self._log("renewed", request)
        return web.json_response({"site": node.site, "certificate": certificate})

    def _count_try(self, address: str) -> None:
        """Count an attempt to join. Raises Refusal E_DOOR_BUSY if the address had too many in this minute.

        Why not the package `limits`: it would do no more than these lines, and needs a thread to remove old addresses.
        Memory is bounded because each attempt needs a TLS handshake: 1,000 a second for a minute would use 6 MiB.
        """
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            self._minute = minute
            self._tries.clear()
        self._tries[address] += 1
        if self._tries[address] > MAX_TRIES_A_MINUTE:
            raise Refusal(reasons.DOOR_BUSY)


async def _read_form(request: web.BaseRequest) -> bytes:
    if request.content_length is None or request.content_length > MAX_FORM_BYTES:
        raise Refusal(reasons.BODY_SIZE, megabytes=MAX_FORM_BYTES / 2**20)
    try:
        async with asyncio.timeout(FORM_SECONDS):
            return await request.read()
    except TimeoutError as error:
        raise Refusal(reasons.TOO_SLOW, seconds=FORM_SECONDS) from error


def _travels(header: str) -> bool:
    """Whether a header is forwarded: Flower's own and those of the body, not those of a connection or proxy."""
    name = header.lower()
    return name.startswith(HEADERS) or name in ("content-type", "content-length", "accept")


def _check_version(request: web.BaseRequest) -> None:
    """Check the version of a node that connects. One that does not send it is judged in the handshake of each run."""
    theirs = request.headers.get(VERSION_HEADER)
    if theirs is not None and (why := who_must_upgrade(theirs, version("fedthorax"))):
        raise Refusal(why)


def _check_signed_headers(request: web.BaseRequest, node: Holder) -> None:
    """Check key and time of Flower's own authentication. The SuperLink checks the signature itself."""
    try:
        key = base64.b64decode(request.headers[PUBLIC_KEY_HEADER], validate=True)
        signed = datetime.fromisoformat(request.headers[TIMESTAMP_HEADER])
        age = time.time() - signed.timestamp() if signed.tzinfo else None
    except (KeyError, ValueError, OverflowError, binascii.Error) as error:
        raise Refusal(reasons.NODE_KEY) from error
    if age is None or key != node.public_key:
        raise Refusal(reasons.NODE_KEY)
    if not -MAX_AHEAD_SECONDS < age < MAX_BEHIND_SECONDS:
        raise Refusal(reasons.CLOCK, seconds=round(abs(age)), direction="before" if age > 0 else "after")
