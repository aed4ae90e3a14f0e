"""Generate docs/refusals.md from the tables of reasons: `python -m federation.system.refusals_page`."""

import sys

import models.reasons
from models.reason_tables import reasons_in, tables
from models.refusal import Reason
from pipeline.system.codes import BY_CODE

SECTIONS: dict[str, list[Reason]] = {
    "Settings and models": reasons_in(models.reasons),
    "Scans, laboratory, cohort": list(BY_CODE.values()),
    "The clinician's page": reasons_in(
        *(table for room, table in tables("pipeline").items() if room.split(".")[0] == "clinic")
    ),
    "Federation": reasons_in(*tables("federation").values()),
}
REASONS = {reason.code: reason for reasons in SECTIONS.values() for reason in reasons}
HEAD = """# Every refusal, and what to do about it

`E_` means that something was refused, `W_` that it was accepted and flagged. Codes are stable; words in braces stand
for numbers, or for names that identify no patient. Generated from the tables in the code by
`python -m federation.system.refusals_page`.
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    for title, reasons in SECTIONS.items():
        rows = [f"| `{r.code}` | {r.says} | {r.remedy} |" for r in reasons]
        parts.append(
            "\n".join([f"## {title}", "", "| code | what it says | what to do |", "| --- | --- | --- |", *rows])
        )
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
