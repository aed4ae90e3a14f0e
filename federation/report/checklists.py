"""Reporting checklists, filled in with what a run knows.

The wording of the items is ours; the numbers are the checklist's. The answer to an item is a template over the report's
content. An answer does not mean that an item is done well: "told" means that the report gives what the item asks for,
"in part" that the study's authors must add information, "authors" that only the authors can answer it.
"""

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

CHECKLISTS = ("tripod_ai", "claim")
AUTHORS = "To be reported by the study's authors."


def read(name: str) -> dict[str, Any]:
    """Read a checklist from its file: title, source, items."""
    return tomllib.loads((files("federation.report") / "checklist_files" / f"{name}.toml").read_text("utf-8"))


def filled_in(name: str, report: Mapping[str, Any], sections: Mapping[str, str]) -> dict[str, Any]:
    """Return a checklist with the run's answer to each item.

    `report`: the report's content. `sections`: the names of the report's sections in text, by key. The result is plain
    text, which a page must escape.
    """
    checklist = read(name)
    environment = Environment(undefined=StrictUndefined)  # noqa: S701  # plain text; the page escapes it
    items = [_item(item, environment, {**report, "section": sections}) for item in checklist["items"]]
    states = [item["state"] for item in items]
    counts = {state: states.count(state) for state in ("told", "in part", "authors")}
    return {"title": checklist["title"], "source": checklist["source"], "counts": counts, "items": items}


def _item(item: Mapping[str, str], environment: Environment, report: Mapping[str, Any]) -> dict[str, str]:
    text, authors = (environment.from_string(item.get(part, "")).render(report) for part in ("run", "authors"))
    text = " ".join(text.split())
    state = "authors" if not text else "in part" if authors else "told"
    says = text if state == "told" else f"{text} The authors add {authors}." if text else AUTHORS
    return {"number": item["number"], "part": item["part"], "asks": item["asks"], "state": state, "says": says}
