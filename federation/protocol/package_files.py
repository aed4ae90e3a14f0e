"""Where packages of one's own are kept. Imports no torch, for the gateway.

SERVER_DIR/runs/<run>/package-<sha256>.json   a package's document, for the study's run
SITE_DIR/networks/<sha256>.json               the same, as the hospital approved it (`federation.approval.packages`)
SITE_DIR/networks/<sha256>.plans              the tensors of its networks, by name
SITE_DIR/sandbox/network-<sha256>.json        copies of both, for the study's code in the sandbox
SITE_DIR/sandbox/network-<sha256>.plans
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from models.network_plan import Plan
from models.reasons import NETWORK_CLOSED
from models.refusal import Refusal

PACKAGES = "networks"  # called so since packages held only networks
_EARLIER = "network.json"  # of a run that an earlier version began
_PLANS = TypeAdapter(dict[str, Plan])


def in_run(run: Path, code: str) -> Path:
    """Return where a run keeps a package; `run`: its folder."""
    document = run / f"package-{code}.json"
    return document if document.exists() or not (run / _EARLIER).exists() else run / _EARLIER


def handed_over(site: Path, code: str) -> Path:
    """Return where the sandbox shows an approved package; `site`: the site's folder."""
    return site / "sandbox" / f"network-{code}.json"


def plans_beside(document: Path) -> Path:
    """Return where the plans of a package are, beside its document."""
    return document.with_suffix(".plans")


def read_plans(file: Path) -> dict[str, Plan]:
    """Read the plans of a package. Raises Refusal E_NETWORK_CLOSED."""
    try:
        return plans_of(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise Refusal(NETWORK_CLOSED, private=f"{file}: {type(error).__name__}") from error


def plans_as_json(plans: Mapping[str, Plan]) -> bytes:
    """Return plans as `plans_of` reads them."""
    return _PLANS.dump_json(dict(plans))


def plans_of(content: bytes) -> dict[str, Plan]:
    """Parse plans. Raises pydantic's ValidationError."""
    return _PLANS.validate_json(content)
