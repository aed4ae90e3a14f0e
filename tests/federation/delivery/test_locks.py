"""The locks of the roles: what `make lock` writes, and that the ones in configs/locks/ are up to date."""

import itertools
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from federation.delivery.locks import EXTRAS, OF_TORCH, ROLES, lock_file, lock_text, locked
from models.refusal import Refusal

ROOT = Path(__file__).resolve().parents[3]
PYTHON = {"python_version": "3.11", "python_full_version": "3.11.7"}


def wheel(name: str, number: int) -> dict[str, Any]:
    return {"url": f"https://registry.example/{name}", "hashes": {"sha256": f"{number:064x}"}}


def package(name: str, *wheels: str, marker: str | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "version": "1.0", "wheels": [wheel(w, i) for i, w in enumerate(wheels)]}
    return entry if marker is None else {**entry, "marker": marker}


def test_a_lock_has_the_wheels_of_linux_and_the_supported_pythons_only() -> None:
    compiled = package(
        "compiled",
        "compiled-1.0-cp310-cp310-manylinux_2_17_x86_64.whl",
        *(f"compiled-1.0-cp3{minor}-cp3{minor}-manylinux_2_28_x86_64.whl" for minor in (11, 12, 13)),
        "compiled-1.0-cp311-cp311-manylinux_2_39_x86_64.whl",
        "compiled-1.0-cp311-cp311-musllinux_1_2_x86_64.whl",
        "compiled-1.0-cp311-cp311-win_amd64.whl",
        "compiled-1.0-cp311-cp311-manylinux_2_28_aarch64.whl",
    )
    lines = lock_text("node", [compiled, package("anything", "anything-1.0-py3-none-any.whl")]).splitlines()
    hashes = [int(line.split("sha256:")[1].split()[0], 16) for line in lines if "--hash" in line]
    assert hashes == [0, 1, 2, 3]
    assert lines[2:4] == ["anything==1.0 \\", f"    --hash=sha256:{0:064x}"]


def test_a_lock_leaves_out_torch_other_systems_and_what_no_python_needs() -> None:
    pure = "{}-1.0-py3-none-any.whl".format
    old = package("old", pure("old"), marker="python_full_version < '3.12' and sys_platform == 'linux'")
    never = package("never", pure("never"), marker="python_version < '3.11'")
    windows = package("windows", pure("windows"), marker="sys_platform == 'win32'")
    text = lock_text("node", [package("torch"), package("nvidia-cublas"), windows, never, old])
    assert list(locked(text)) == ["old"]
    assert 'old==1.0 ; python_version == "3.11" \\' in text


def test_a_library_without_a_wheel_for_one_python_is_refused() -> None:
    with pytest.raises(Refusal, match=r"E_LOCK_NO_WHEEL: few has no wheel for Python 3\.13"):
        lock_text(
            "node", [package("few", "few-1.0-cp311-cp311-linux_x86_64.whl", "few-1.0-cp312-cp312-linux_x86_64.whl")]
        )


@pytest.mark.parametrize("role", ROLES)
def test_shipped_lock_has_hashes_and_the_versions_of_the_constraints(role: str) -> None:
    text = lock_file(ROOT, role).read_text()
    versions = locked(text)
    constraints = dict(re.findall(r"^([^#\s=]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    constraints["flwr"] = metadata.version("flwr")  # pyproject.toml pins it
    tested = {canonicalize_name(name): version for name, version in constraints.items()}
    assert versions == {name: tested.get(name) for name in versions}
    assert not any(name.startswith(OF_TORCH) for name in versions)
    assert len(re.findall(r"^\S+==.*\\\n    --hash=sha256:[0-9a-f]{64}", text, re.M)) == len(versions)


@pytest.mark.parametrize("role", ROLES)
def test_shipped_lock_has_every_library_that_the_role_asks_for(role: str) -> None:
    """Fails after a change in pyproject.toml without `make lock`. What libraries ask for is read from the installed."""
    versions = locked(lock_file(ROOT, role).read_text())
    asked, seen = [Requirement(f"fedthorax[{','.join(EXTRAS[role])}]")], set()
    while asked:
        wanted = asked.pop()
        name = canonicalize_name(wanted.name)
        if str(wanted) in seen or name.startswith(OF_TORCH):
            continue
        seen.add(str(wanted))
        assert name in versions or name == "fedthorax", wanted
        asked += [each for each in requirements_of(name, wanted.extras) if needed(each, wanted.extras)]
    assert len(seen) > 80


def requirements_of(name: str, extras: set[str]) -> list[Requirement]:
    if name != "fedthorax":
        return [Requirement(text) for text in metadata.requires(name) or ()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = (project["optional-dependencies"][extra] for extra in sorted(extras))
    return [Requirement(text) for text in (*project["dependencies"], *itertools.chain(*lists))]


def needed(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra, **PYTHON}) for extra in (*extras, ""))
