"""Reporting checklists, filled in as far as a run knows.

An item's words are ours; its number is the checklist's. What the run tells is a template over the report's content.
It never says that an item is done: "told" means that the report gives what the item asks for, "in part" that the
study's authors must add to it, "authors" that the run cannot know.
"""

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

CHECKLISTS = ("tripod_ai", "claim")
AUTHORS = "To be told by the study's authors."


def read(name: str) -> dict[str, Any]:
    """A checklist as its file has it: title, source, items."""
    return tomllib.loads((files("federation.report") / "checklist_files" / f"{name}.toml").read_text("utf-8"))


def filled_in(name: str, told: Mapping[str, Any], sections: Mapping[str, str]) -> dict[str, Any]:
    """A checklist with what the run tells for each item.

    `told`: the report's content. `sections`: how the report's sections are called, by name. What comes out is plain
    text: a page has to escape it.
    """
    checklist = read(name)
    environment = Environment(undefined=StrictUndefined)  # noqa: S701  # plain text; the page escapes it
    items = [_item(item, environment, {**told, "section": sections}) for item in checklist["items"]]
    states = [item["state"] for item in items]
    counts = {state: states.count(state) for state in ("told", "in part", "authors")}
    return {"title": checklist["title"], "source": checklist["source"], "counts": counts, "items": items}


def _item(item: Mapping[str, str], environment: Environment, told: Mapping[str, Any]) -> dict[str, str]:
    text = " ".join(environment.from_string(item.get("run", "")).render(told).split())
    authors = item.get("authors", "")
    state = "authors" if not text else "in part" if authors else "told"
    says = text if state == "told" else f"{text} The authors add {authors}." if text else AUTHORS
    return {"number": item["number"], "part": item["part"], "asks": item["asks"], "state": state, "says": says}
