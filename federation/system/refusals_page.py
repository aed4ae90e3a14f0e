"""The page docs/refusals.md, made from the tables of reasons: `python -m federation.system.refusals_page`."""

import sys
from types import ModuleType

import federation.system.reasons
import models.reasons
import pipeline.clinic.reasons
import pipeline.system.reasons
from models.refusal import Reason

TABLES: dict[str, ModuleType] = {
    "Settings and models": models.reasons,
    "Scans, laboratory, cohort": pipeline.system.reasons,
    "The clinician's page": pipeline.clinic.reasons,
    "Federation": federation.system.reasons,
}
HEAD = """# Every refusal, and what to do about it

`E_` means that something was refused, `W_` that it was accepted and flagged. Codes are stable; words in braces stand
for numbers, or for names that identify no patient. Generated from the tables in the code by
`python -m federation.system.refusals_page`.
"""


def table(module: ModuleType) -> list[Reason]:
    """The reasons that a module defines, by code."""
    found = {value.code: value for value in vars(module).values() if isinstance(value, Reason)}
    return [found[code] for code in sorted(found)]


def page() -> str:
    """The page in Markdown."""
    parts = [HEAD]
    for title, module in TABLES.items():
        rows = [f"| `{r.code}` | {r.says} | {r.remedy} |" for r in table(module)]
        parts.append(
            "\n".join([f"## {title}", "", "| code | what it says | what to do |", "| --- | --- | --- |", *rows])
        )
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
