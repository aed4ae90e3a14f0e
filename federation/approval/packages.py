"""A site's decisions about packages of one's own, by the SHA-256 of each package's files, in SITE_DIR/networks.

Only the bytes that were approved ever run: they are kept here, with the tensors of each network (its plan), which the
sandbox worked out. A file that is installed beside them has no effect. Works without torch, and runs no code of a
package.
"""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from federation.approval import reasons
from federation.approval.decisions import Decision, Decisions
from federation.ledger.chain import ledger_file
from federation.protocol.package_files import PACKAGES, handed_over, plans_as_json, plans_beside, read_plans
from federation.system.digests import SHA256
from models.network_plan import Plan
from models.own_packages import MAX_BYTES, NAME, Kind, Named, Package, read_package
from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.system.atomic_files import write_durably

_NAME = re.compile(NAME)
# Where a study names the parts of packages that run at a hospital: table, key, key of the code. A strategy runs on the
# server alone.
_PLACES: dict[Kind, tuple[str, str, str]] = {
    "network": ("network", "architecture", "code"),
    "loss": ("training", "loss", "loss_code"),
    "transform": ("training", "transform", "transform_code"),
}


def parts_of(study: str) -> list[Named]:
    """Return the parts of packages that a study (JSON) runs at a hospital: network, loss, transform.

    Raises Refusal E_RUN_CONFIG if a name or a code is not plain: the SHA-256 is used as the name of a file.
    """
    tables, found = json.loads(study), []
    for kind, (table_name, key, code_key) in _PLACES.items():
        table = tables.get(table_name, {})
        name, code = (table.get(each, "") for each in (key, code_key)) if isinstance(table, dict) else (None, None)
        if not code and isinstance(name, str) and ":" not in name:
            continue
        if not (isinstance(name, str) and _NAME.fullmatch(name) and isinstance(code, str) and SHA256.fullmatch(code)):
            raise Refusal(reasons.RUN_CONFIG, private=f"the {kind} is not package:name with the SHA-256 of its files")
        found.append(Named(kind, name, code))
    return found


class PackageApprovals:
    """A site's decisions about packages."""

    def __init__(self, site: Site) -> None:
        self._site, self.folder = site, site.folder / PACKAGES
        self._decisions = Decisions(
            self.folder, ledger_file(site), suffix=".json", max_bytes=2 * MAX_BYTES, what="network"
        )

    def check(self, study: str) -> None:
        """Check that all that a study (JSON) uses of packages may run here now.

        Raises Refusal: E_NETWORK_REFUSED, E_NETWORK_CHANGED, E_RUN_CONFIG, E_APPROVALS.
        """
        for part in parts_of(study):
            decision = self._decisions.last(part.code)
            if decision is None or decision.decided != "approved":
                raise Refusal(reasons.NETWORK_REFUSED, private=f"{part.name} {part.code}")
            package = self.package(part.code)
            approved = self._plans(part.code) if part.kind == "network" else package.parts(part.kind)
            if part.name not in {f"{package.name}:{each}" for each in approved}:
                raise Refusal(reasons.NETWORK_REFUSED, private=f"{part.name} is not a {part.kind} of {part.code}")

    def package(self, code: str) -> Package:
        """Return an approved package. Raises Refusal E_NETWORK_CHANGED if its kept bytes are gone or not the same."""
        content = self._decisions.content(code)
        if content is None:
            raise Refusal(reasons.NETWORK_CHANGED, private=code)
        return read_package(content)

    def _plans(self, code: str) -> Mapping[str, Plan]:
        return read_plans(self.folder / f"{code}.plans")

    def decisions(self) -> list[Decision]:
        """Return the last decision about each package, the newest first. Raises Refusal E_APPROVALS."""
        last = {decision.sha256: decision for decision in self._decisions.all()}
        return sorted(last.values(), key=lambda decision: decision.at, reverse=True)

    def approve(self, package: Package, plans: Mapping[str, Plan], *, by: str, note: str = "") -> str:
        """Let studies use a package, and return its SHA-256. `plans`: as the sandbox worked them out.

        Raises OSError, and Refusal as `Decisions.approve` does.
        """
        self.folder.mkdir(exist_ok=True, mode=0o700)
        write_durably(self.folder / f"{package.sha256}.plans", plans_as_json(plans))
        code = self._decisions.approve(package.content, by=by, note=note)
        self.hand_over()
        return code

    def revoke(self, code: str, *, by: str, note: str = "") -> None:
        """Forbid a package. Raises Refusal as `Decisions.revoke` does."""
        self._decisions.revoke(code, by=by, note=note)
        for path in (handed_over(self._site.folder, code), plans_beside(handed_over(self._site.folder, code))):
            path.unlink(missing_ok=True)

    def hand_over(self) -> None:
        """Copy the approved packages and their plans to where the sandbox sees them. A damaged one is left out.

        Raises OSError; Refusal E_APPROVALS.
        """
        for decision in self.decisions():
            if decision.decided == "approved" and (content := self._decisions.content(decision.sha256)) is not None:
                document = handed_over(self._site.folder, decision.sha256)
                document.parent.mkdir(exist_ok=True, mode=0o700)
                _replace(document, content)
                with suppress(FileNotFoundError):
                    _replace(plans_beside(document), (self.folder / f"{decision.sha256}.plans").read_bytes())


def _replace(path: Path, content: bytes) -> None:
    """Write a file as a new one. Its group bits make the folder's access control list effective."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640), "wb") as file:
        file.write(content)
