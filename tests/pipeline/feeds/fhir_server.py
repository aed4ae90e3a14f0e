"""A FHIR R4 server for tests: a real HTTP(S) server on this machine, with search, pages, $export and a token endpoint.

Its resources are written here in the shape of the published examples; all data are synthetic.
"""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt

Json = dict[str, Any]
FHIR, PLAIN = "application/fhir+json", "application/json"


@dataclass
class Answer:
    """A response: a JSON value or bytes."""

    body: Any = field(default_factory=dict)
    status: int = 200
    kind: str = FHIR
    headers: dict[str, str] = field(default_factory=dict)


def matches(resource: Json, query: dict[str, list[str]]) -> bool:
    """Whether a resource has the ids and patients of a search."""
    ids = query["_id"][0].split(",") if "_id" in query else [resource.get("id")]
    patient = resource.get("subject", {}).get("reference", "")
    patients = query["patient"][0].split(",") if "patient" in query else [patient]
    return resource.get("id") in ids and patient in patients


@dataclass
class FhirServer:
    """The server's content and what it was asked. `special`: responses by path, used before all others."""

    resources: list[Json] = field(default_factory=list)
    special: dict[str, Callable[["FhirServer", str], Answer | None]] = field(default_factory=dict)
    public_key: Any = None  # of a registered client; None: no token is needed
    client_id: str = "fedthorax"
    valid_tokens: set[str] = field(default_factory=set)
    issued: int = 0
    asked: list[str] = field(default_factory=list)  # paths with queries
    with_token: list[bool] = field(default_factory=list)
    polls: int = 0
    includes: bool = True
    port: int = 0
    scheme: str = "http"
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def origin(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/r4"

    def answer(self, path: str, token: str) -> Answer:
        with self.lock:
            self.asked.append(path)
            self.with_token.append(bool(token))
        plain = urlsplit(path).path
        if plain in self.special and (special := self.special[plain](self, path)):
            return special
        if self.public_key is not None and token not in self.valid_tokens:
            return Answer({"resourceType": "OperationOutcome"}, 401)
        if plain == "/r4/metadata":
            return Answer({"resourceType": "CapabilityStatement", "fhirVersion": "4.0.1"})
        return self._export(plain) or self._read(plain, path)

    def _export(self, plain: str) -> Answer | None:
        """Answer the requests of an export: start, status, files."""
        if plain.endswith("$export"):
            return Answer({}, 202, headers={"Content-Location": f"{self.url}/status/1"})
        if plain.endswith("/status/1"):
            return self._status()
        if plain.startswith("/r4/files/"):
            kind = plain.rpartition("/")[2]
            lines = [json.dumps(each) for each in self.resources if each["resourceType"] == kind]
            return Answer("\n".join(lines).encode(), kind="application/fhir+ndjson")
        return None

    def _status(self) -> Answer:
        self.polls += 1
        if self.polls < 3:
            return Answer({}, 202, headers={"Retry-After": "7", "X-Progress": "half"})
        kinds = sorted({each["resourceType"] for each in self.resources})
        output = [{"type": kind, "url": f"{self.url}/files/{kind}"} for kind in kinds]
        body = {"transactionTime": "2020-04-20T10:00:00Z", "requiresAccessToken": True, "output": output}
        return Answer(body, kind=PLAIN)

    def _read(self, plain: str, path: str) -> Answer:
        parts = plain.removeprefix("/r4/").split("/")
        of_kind = [each for each in self.resources if each["resourceType"] == parts[0]]
        if len(parts) == 2:
            found = [each for each in of_kind if each.get("id") == parts[1]]
            return Answer(found[0]) if found else Answer({}, 404)
        query = parse_qs(urlsplit(path).query)
        since = query.get("_lastUpdated", ["ge"])[0].removeprefix("ge")
        codes = {code.rpartition("|")[2] for code in query.get("code", [""])[0].split(",")} - {""}
        found = [each for each in of_kind if each.get("meta", {}).get("lastUpdated", "9") >= since]
        found = [each for each in found if not codes or codes & {c["code"] for c in each["code"]["coding"]}]
        found = [each for each in found if matches(each, query)]
        size, page = int(query["_count"][0]), int(query.get("page", ["0"])[0])
        shown = found[page * size : (page + 1) * size]
        named = {each[key]["reference"] for each in shown for key in ("subject", "specimen") if key in each}
        more = [each for each in self.resources if f"{each['resourceType']}/{each.get('id')}" in named]
        entries = [
            {"fullUrl": f"{self.url}/{each['resourceType']}/{each.get('id')}", "resource": each}
            for each in (*shown, *(more if self.includes else []))
        ]
        links = [{"relation": "self", "url": self.origin + path}]
        if (page + 1) * size < len(found):
            links.append({"relation": "next", "url": f"{self.origin}{path.partition('&page=')[0]}&page={page + 1}"})
        return Answer({"resourceType": "Bundle", "type": "searchset", "link": links, "entry": entries})

    def token(self, form: dict[str, list[str]]) -> Answer:
        """SMART backend services: verify the assertion and issue a token."""
        header = jwt.get_unverified_header(form["client_assertion"][0])
        claims = jwt.decode(
            form["client_assertion"][0], self.public_key, algorithms=["RS384", "ES384"], audience=f"{self.origin}/token"
        )
        right = (
            form["grant_type"] == ["client_credentials"]
            and form["client_assertion_type"] == ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"]
            and claims["iss"] == claims["sub"] == self.client_id
            and claims["exp"] - claims["iat"] <= 300
            and header["alg"] in ("RS384", "ES384")
            and header["kid"] == "1"
        )
        if not right:
            return Answer({"error": "invalid_client"}, 400, PLAIN)
        self.issued += 1
        self.valid_tokens.add(f"token-{self.issued}")
        return Answer({"access_token": f"token-{self.issued}", "token_type": "bearer", "expires_in": 300}, kind=PLAIN)


@contextmanager
def serving(server: FhirServer, certificate: tuple[Path, Path] | None = None) -> Iterator[FhirServer]:
    """Serve within the block, with TLS if there is a certificate with its key."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(server.answer(self.path, self.headers.get("Authorization", "").removeprefix("Bearer ")))

        do_DELETE = do_GET  # noqa: N815

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            try:
                self._send(server.token(form))
            except jwt.PyJWTError:
                self._send(Answer({"error": "invalid_client"}, 401, PLAIN))

        def _send(self, answer: Answer) -> None:
            body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response_only(answer.status)
            headers = {"Content-Type": answer.kind, "Content-Length": str(len(body)), "Date": formatdate(usegmt=True)}
            for name, value in {**headers, **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
        server.scheme = "https"
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
