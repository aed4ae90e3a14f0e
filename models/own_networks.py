"""Networks from a package of one's own, which registers functions under the entry points `fedthorax.networks`.

A package's Python files are read as text into one document, whose SHA-256 names exactly this code. Modules are imported
from that document, never from the files on disk. So code that changed since it was hashed does not run, and neither
does a file that nobody reviewed.

A process runs such code only after `allow`. Programs at a hospital beside the sandbox never call it: they work with a
`Plan`, the list of the network's tensors. Imports no torch.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, EntryPoint, distributions, packages_distributions
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from models.network_plan import Plan
from models.reasons import NETWORK_CLOSED, NETWORK_PACKAGE, NETWORK_UNLIKE
from models.refusal import Refusal

if TYPE_CHECKING:
    from torch import nn

GROUP = "fedthorax.networks"
MAX_FILES, MAX_BYTES = 100, 2**20
_PACKAGE = r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?"
_NETWORK = r"[a-z][a-z0-9_]{0,39}"
NAME = rf"^{_PACKAGE}:{_NETWORK}$"  # of a network in a study
_WORD = r"[A-Za-z_][A-Za-z0-9_]{0,99}"
# Modules that our code imports; a package must not answer for them. Those of other distributions: see `installed`.
_OURS = {"configs", "federation", "fedthorax", "models", "pipeline"}
_LIBRARIES = {"flwr", "monai", "numpy", "opacus", "pydantic", "safetensors", "scipy", "sklearn", "torch"}
_AT_START = {"sitecustomize", "usercustomize"}


class Package(BaseModel):
    """A package's code. `networks`: by name, "module:function"; `files`: the text of each, by path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    name: Annotated[str, StringConstraints(pattern=rf"^{_PACKAGE}$")]
    networks: dict[
        Annotated[str, StringConstraints(pattern=rf"^{_NETWORK}$")],
        Annotated[str, StringConstraints(pattern=rf"^{_WORD}(\.{_WORD}){{0,9}}:{_WORD}$")],
    ]
    files: dict[Annotated[str, StringConstraints(pattern=rf"^{_WORD}(/{_WORD}){{0,9}}\.py$")], str]

    @property
    def root(self) -> str:
        """The only top-level module of the package."""
        return next(iter(self.networks.values())).partition(":")[0].partition(".")[0]

    @property
    def content(self) -> bytes:
        """The document in its only form."""
        return self.model_dump_json().encode()

    @property
    def sha256(self) -> str:
        return sha256(self.content).hexdigest()

    @model_validator(mode="after")
    def has_one_root_that_is_nobody_elses(self) -> Self:
        if not self.networks or not self.files:
            raise ValueError("it has no network, or no file")
        if len(self.files) > MAX_FILES or sum(map(len, self.files.values())) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_FILES} files or {MAX_BYTES >> 20} MB")
        for path in self.files:
            if path.removesuffix(".py").partition("/")[0] != self.root:
                raise ValueError("its files and networks are not below one module")
        if len({path.casefold() for path in self.files}) < len(self.files):
            raise ValueError("two of its files have names that some systems take for one")
        if self.root.casefold() in {name.casefold() for name in _taken()}:
            raise ValueError(f"its module {self.root} has the name of a module that others import")
        return self


def _taken() -> set[str]:
    return _OURS | _LIBRARIES | _AT_START | sys.stdlib_module_names


def read_package(content: bytes) -> Package:
    """Read a package's document. Raises Refusal E_NETWORK_PACKAGE if it is none, or not in its only form."""
    try:
        package = Package.model_validate_json(content)
    except ValidationError as error:
        raise _unusable(_first(error)) from None
    if package.content != content:
        raise _unusable("its document is not in the usual form")
    return package


def installed(name: str, folders: Sequence[Path] = ()) -> Package:
    """Read an installed package without importing it. `folders`: where to look, instead of Python's path.

    `name`: of the distribution, as PyPI normalises it. Raises Refusal E_NETWORK_PACKAGE.
    """
    places = [str(folder) for folder in folders] or sys.path
    found = [each for each in distributions(path=places) if _normal(each.metadata["Name"]) == name]
    if not found:
        raise _unusable("it is not installed", name=name)
    entries = {entry.name: entry for entry in found[0].entry_points.select(group=GROUP)}
    roots = {entry.module.partition(".")[0] for entry in entries.values()}
    if len(roots) != 1:
        raise _unusable(f"it has no entry point {GROUP}, or those of several modules", name=name)
    (root,) = roots
    others = {_normal(each) for each in packages_distributions().get(root, ())} - {name}
    if others:
        raise _unusable(f"its module {root} belongs to another package", name=name)
    return _packed(name, entries, _files(found[0], root, name))


def _packed(name: str, entries: Mapping[str, EntryPoint], files: Mapping[str, str]) -> Package:
    networks = {each: entries[each].value.replace(" ", "") for each in sorted(entries)}
    try:
        return Package(name=name, networks=networks, files=dict(sorted(files.items())))
    except ValidationError as error:
        raise _unusable(_first(error), name=name) from None


def _files(distribution: Distribution, root: str, name: str) -> dict[str, str]:
    """Return the text of each file of the package's module, by path."""
    base = Path(str(distribution.locate_file("")))
    top = base / root
    paths = sorted(top.rglob("*")) if top.is_dir() and not top.is_symlink() else [base / f"{root}.py"]
    files: dict[str, str] = {}
    for path in paths:
        if "__pycache__" in path.parts or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink() or path.suffix != ".py" or len(files) >= MAX_FILES:
            raise _unusable(f"{path.name} is not Python source, is a link, or is one file too many", name=name)
        try:
            files[path.relative_to(base).as_posix()] = path.read_bytes()[: MAX_BYTES + 1].decode("utf-8")
        except (OSError, UnicodeDecodeError):
            raise _unusable(f"{path.name} cannot be read as UTF-8", name=name) from None
    return files


def _normal(name: str | None) -> str:
    """Normalise the name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name or "").lower()


def _first(error: ValidationError) -> str:
    return error.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Value error, ")


def _unusable(problem: str, *, name: str = "of the study's network") -> Refusal:
    return Refusal(NETWORK_PACKAGE, name=name, problem=problem)


# --- running it -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Allowed:
    """What a process may build. `package`: its code, None for stand-ins only; `plans`: None where none is agreed on."""

    package: Package | None
    plans: Mapping[str, Plan] | None


_allowed: dict[str, _Allowed] = {}


def allow(package: Package, plans: Mapping[str, Plan] | None = None) -> None:
    """Let this process import and run a package's code. `plans`: what each network must consist of, by name."""
    _allowed[package.sha256] = _Allowed(package, plans)


def allow_plans(code: str, plans: Mapping[str, Plan]) -> None:
    """Let this process build stand-ins for the networks of a package: their tensors, and no code."""
    _allowed[code] = _Allowed(None, plans)


def allow_installed(network: str, code: str) -> None:
    """Let this process run the installed package of a network ("package:name"), if its files are those of `code`.

    Raises Refusal: E_NETWORK_PACKAGE, E_NETWORK_UNLIKE.
    """
    package = installed(network.partition(":")[0])
    if package.sha256 != code:
        raise Refusal(NETWORK_UNLIKE, name=package.name, private=f"installed: {package.sha256}")
    allow(package)


def is_allowed(code: str) -> bool:
    return code in _allowed


def build(network: str, code: str) -> "tuple[nn.Module, Plan]":
    """Return the layers of a network ("package:name"), or their stand-in, and its plan.

    Draws no number from torch's generator. Raises Refusal: E_NETWORK_CLOSED if this process may not run it,
    E_NETWORK_PACKAGE if it does not have it, E_NETWORK_PLAN if its tensors are not usable, or not those agreed on.
    """
    from models.network_layers import plan_of, stand_in

    allowed, (package_name, _, name) = _allowed.get(code), network.partition(":")
    if allowed is None:
        raise Refusal(NETWORK_CLOSED)
    known = None if allowed.plans is None else allowed.plans.get(name)
    if allowed.package is None:
        if known is None:
            raise _unusable("it has no such network", name=package_name)
        return stand_in(known), known
    package = allowed.package
    if package.name != package_name or name not in package.networks:
        raise _unusable("it has no such network", name=package_name)
    layers = _made(package, name)
    plan = plan_of(layers)
    if allowed.plans is not None and plan != known:
        from models.reasons import NETWORK_PLAN

        raise Refusal(NETWORK_PLAN, problem="they are not those that were approved")
    return layers, plan


def _made(package: Package, name: str) -> "nn.Module":
    import torch

    module, _, function = package.networks[name].partition(":")
    with torch.random.fork_rng(devices=[]):
        layers = getattr(_imported(package, module), function)()
    if not isinstance(layers, torch.nn.Module):
        raise _unusable(f"{function} returns no torch.nn.Module", name=package.name)
    return layers


def _imported(package: Package, module: str) -> ModuleType:
    """Import a module of the package from its document, once in a process."""
    finder = next((each for each in sys.meta_path if isinstance(each, _Finder) and each.root == package.root), None)
    if finder is None:
        if package.root in sys.modules:
            raise _unusable(f"its module {package.root} was imported before", name=package.name)
        sys.meta_path.insert(0, finder := _Finder(package))
    elif finder.package != package:
        raise _unusable(f"another version of its module {package.root} was imported before", name=package.name)
    __import__(module)
    return sys.modules[module]


class _Finder(MetaPathFinder, Loader):
    """Imports the modules of one package from its document."""

    def __init__(self, package: Package) -> None:
        self.package, self.root = package, package.root

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Find a module of the package; anything else is not ours. Files on disk are never searched for it."""
        if fullname.partition(".")[0] != self.root:
            return None
        place = self._place(fullname)
        is_package = place.endswith("/__init__.py")
        origin = f"{self.package.name}@{self.package.sha256[:12]}/{place}"
        return spec_from_loader(fullname, self, origin=origin, is_package=is_package)

    def create_module(self, spec: ModuleSpec) -> None:
        """Let Python create the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's text."""
        place = self._place(module.__name__)
        code = compile(self.package.files[place], f"{self.package.name}/{place}", "exec", dont_inherit=True)
        exec(code, module.__dict__)  # noqa: S102 - this is what `allow` permits

    def _place(self, module: str) -> str:
        path = module.replace(".", "/")
        for place in (f"{path}/__init__.py", f"{path}.py"):
            if place in self.package.files:
                return place
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
