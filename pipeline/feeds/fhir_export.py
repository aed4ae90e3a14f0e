"""Fetches resources with Bulk Data Access ($export, https://hl7.org/fhir/uv/bulkdata/): start, wait, read the files.

The export's status URL and the files that are done are stored: a fetch that was interrupted waits for the same export
and continues with the next file. A file is stored in one transaction for each thousand lines.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from models.refusal import Refusal
from pipeline.feeds import reasons
from pipeline.feeds.fhir_client import FhirClient, GoneError
from pipeline.feeds.fhir_search import Wants, is_id, keep_bundle
from pipeline.feeds.withdrawn_resources import WithdrawnResources
from pipeline.records.fhir_store import ResourceStore
from pipeline.site.fhir_settings import FhirTable
from pipeline.system.json_text import parse_json

_LINES = 1000
_MAX_FILES = 100_000
_WAIT = {reasons.FHIR_EXPORT_WAIT, reasons.FHIR_SILENT, reasons.FHIR_AUTH}  # the same export can still succeed


def export(
    client: FhirClient,
    store: ResourceStore,
    table: FhirTable,
    kinds: Sequence[str],
    wants: Wants,
    withdrawn: WithdrawnResources,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Export resources of these types, store the wanted ones, and return their number.

    After a refusal for which waiting does not help, the next fetch starts a new export.
    Raises Refusal as `FhirClient.get_json`, E_FHIR_EXPORT_WAIT.
    """
    status = str(store.state().get("export") or "")
    if not status:
        status = _start(client, table, kinds, store.state().get("since"))
        store.write(export=status, files=None, done=0)
    count = 0
    try:
        if store.state().get("files") is None:
            manifest = _wait(client, table, status, sleep)
            store.write(files=_files(manifest), at=manifest.get("transactionTime"))
        state = store.state()
        for number in range(state["done"], len(state["files"])):
            count += _file(client, store, state["files"][number], wants, withdrawn)
            store.write(done=number + 1)
    except GoneError:
        store.write(export=None)
        raise Refusal(reasons.FHIR_ANSWER, private="the server has dropped the export, or a file of it") from None
    except Refusal as refusal:
        if refusal.reason not in _WAIT:
            store.write(export=None)
        raise
    client.delete(status)
    store.write(export=None, files=None, done=None, at=None, since=_seconds(state.get("at")))
    return count


def _start(client: FhirClient, table: FhirTable, kinds: Sequence[str], since: float | None) -> str:
    url = f"{client.base}/Group/{table.group}/$export" if table.group else f"{client.base}/Patient/$export"
    parameters = [("_type", ",".join(kinds)), ("_outputFormat", "application/fhir+ndjson")]
    if since:
        parameters.append(("_since", datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")))
    try:
        status = client.start(url, parameters)
    except GoneError:
        raise Refusal(reasons.FHIR_ANSWER, private="the server does not offer this $export") from None
    if not client.is_own(status):
        raise Refusal(reasons.FHIR_ORIGIN, private="the status of the export")
    return status


def _wait(client: FhirClient, table: FhirTable, status: str, sleep: Callable[[float], None]) -> dict[str, Any]:
    """Return the manifest. Raises Refusal E_FHIR_EXPORT_WAIT, GoneError."""
    deadline = time.monotonic() + table.export_hours * 3600
    while not isinstance(answer := client.poll(status), dict):
        if time.monotonic() + answer > deadline:
            raise Refusal(reasons.FHIR_EXPORT_WAIT)
        sleep(answer)
    return answer


def _files(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the files in a manifest: URL, whether they need the token, whether they name deleted resources."""
    files = []
    for key in ("output", "deleted"):
        found = manifest.get(key)
        for each in found if isinstance(found, list) else []:
            if not isinstance(each, dict) or not isinstance(each.get("url"), str):
                raise Refusal(reasons.FHIR_ANSWER, private="the manifest of the export")
            needs = manifest.get("requiresAccessToken") is True
            files.append({"url": each["url"], "token": needs, "deleted": key == "deleted"})
    if len(files) > _MAX_FILES:
        raise Refusal(reasons.FHIR_ENDLESS, pages=len(files))
    return files


def _file(
    client: FhirClient, store: ResourceStore, file: dict[str, Any], wants: Wants, withdrawn: WithdrawnResources
) -> int:
    """Store one file. Raises GoneError, Refusal."""
    count = 0
    trees = _trees(client.lines(file["url"], with_token=file["token"]))
    while some := list(islice(trees, _LINES)):
        if file["deleted"]:
            store.write(gone=[name for tree in some for name in _deleted(tree)])
        else:
            count += keep_bundle(client, store, {"entry": [{"resource": tree} for tree in some]}, wants, withdrawn)
    return count


def _trees(lines: Iterator[bytes]) -> Iterator[Any]:
    """Yield the JSON of each line. Raises Refusal E_FHIR_ANSWER, because a part of an export may be missing."""
    for line in lines:
        if line.strip():
            try:
                yield parse_json(line)
            except ValueError:
                raise Refusal(reasons.FHIR_ANSWER, private="a line of the export is not JSON") from None


def _deleted(bundle: Any) -> Iterator[str]:
    """Yield the resources (type/id) that a transaction Bundle deletes."""
    found = bundle.get("entry") if isinstance(bundle, dict) else None
    for entry in found if isinstance(found, list) else []:
        request = entry.get("request") if isinstance(entry, dict) else None
        if isinstance(request, dict) and request.get("method") == "DELETE":
            kind, _, identifier = str(request.get("url", "")).rpartition("/")
            if is_id(identifier):
                yield f"{kind.rpartition('/')[2]}/{identifier}"


def _seconds(text: Any) -> float | None:
    """Return the time of an instant in seconds since 1970, None if it is not one: then everything is exported again."""
    with suppress(ValueError, OverflowError):
        at = datetime.fromisoformat(text) if isinstance(text, str) else None
        return at.timestamp() if at and at.tzinfo else None
    return None
