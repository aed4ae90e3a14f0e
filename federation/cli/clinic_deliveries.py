"""`fedthorax clinic status` and `send-again`: whether the clinic scores and delivers, and to send again what failed."""

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from federation.cli.console import print_json, print_table, quoted, say
from federation.cli.options import Json
from federation.cli.serve import BY

ClinicDir = Annotated[Path, typer.Argument(metavar="CLINIC", help="The clinic's folder.")]


class Receiver(StrEnum):
    pacs = "pacs"
    fhir = "fhir"
    hl7 = "hl7"


def status(folder: ClinicDir, as_json: Json = False) -> None:
    """Show whether scans are scored, and which results could not be delivered, with what to do."""
    found = _status(folder)
    if as_json:
        print_json(found)
        return
    running = "runs" if found["running"] else "does not run"
    say(f"The service {running}; worker: {found['worker']}; waiting scans: {found['waiting_scans']}.")
    if not (problems := found["deliveries"]):
        say("No result failed to be delivered.")
        return
    alike = Counter((each["target"], each["state"], each["code"], each["remedy"] or "") for each in problems)
    print_table(
        ["system", "state", "code", "results", "what to do"],
        [[target, state, code, str(count), remedy] for (target, state, code, remedy), count in sorted(alike.items())],
        whole=4,
    )
    say(f"When it is solved: fedthorax clinic send-again {quoted(folder)}")


def send_again(
    folder: ClinicDir,
    target: Annotated[Receiver | None, typer.Option(help="Only to this system.")] = None,
    as_json: Json = False,
) -> None:
    """Queue the results again that could not be delivered. The service sends them; nothing arrives twice."""
    from pipeline.clinic.results.outbox import Outbox
    from pipeline.clinic.settings import Clinic

    queued = Outbox(Clinic.open(folder)).put_failed(target.value if target else None, by=BY)
    if as_json:
        print_json({"queued": queued})
    else:
        say(f"Queued again: {queued}.")


def _status(folder: Path) -> dict[str, Any]:
    from federation.upgrade.clinics import is_running
    from pipeline.clinic.settings import Clinic

    clinic = Clinic.open(folder)
    with clinic.store() as store:
        state, code = store.worker.get()
        problems = [{**each.to_json(), "answer_id": each.answer_id} for each in store.deliveries.problems()]
        waiting = store.jobs.waiting()
    running = is_running(clinic)
    worker = {"worker": state if running else "stopped", "worker_code": code if running else None}
    return {"running": running, **worker, "waiting_scans": waiting, "deliveries": problems}
