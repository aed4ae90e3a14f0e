"""Reads the container files that the project ships: compose files and Kubernetes manifests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parents[2] / "docs"
COMPOSE = tuple(sorted((DOCS / "containers").glob("compose-*.yaml")))
KUBERNETES = DOCS / "kubernetes"
ROLES = ("node", "server", "clinic")


def compose_file(role: str) -> dict[str, Any]:
    """Return a role's compose file."""
    content: dict[str, Any] = yaml.safe_load((DOCS / "containers" / f"compose-{role}.yaml").read_text(encoding="utf-8"))
    return content


def manifests(role: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield each object of a role's manifests with its file, also those that its kustomization leaves out."""
    for path in sorted((KUBERNETES / role).glob("*.yaml")):
        if path.name != "kustomization.yaml":
            for content in yaml.safe_load_all(path.read_text(encoding="utf-8")):
                yield path, content


def pods(role: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the description of each pod of a role's manifests."""
    for path, content in manifests(role):
        match content["kind"]:
            case "Deployment" | "Job":
                yield path, content["spec"]["template"]["spec"]
            case "CronJob":
                yield path, content["spec"]["jobTemplate"]["spec"]["template"]["spec"]
