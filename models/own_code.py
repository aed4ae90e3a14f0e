"""Run the code of packages (`models.own_packages`): only in a process that says so by `allow`.

Programs at a hospital beside the sandbox never say so. They work with a `Plan`, the list of a network's tensors.
Imports no torch.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from inspect import Parameter, signature
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

from models.network_plan import Plan
from models.own_packages import Named, Package, installed, unusable
from models.reasons import NETWORK_CLOSED, NETWORK_UNLIKE, PACKAGE_PART
from models.refusal import Refusal

if TYPE_CHECKING:
    from torch import nn


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


def function(part: Named) -> Callable[..., Any]:
    """Return the function of a loss, transform or strategy.

    Raises Refusal: E_NETWORK_CLOSED if this process may not run it, E_NETWORK_PACKAGE if the package has none of this
    name. What its module raises when it is imported is raised too.
    """
    allowed = _allowed.get(part.code)
    if allowed is None or allowed.package is None:
        raise Refusal(NETWORK_CLOSED)
    package, (package_name, _, name) = allowed.package, part.name.partition(":")
    if package.name != package_name or name not in package.parts(part.kind):
        raise unusable(f"it has no such {part.kind}", name=package_name)
    found: Callable[..., Any] = _function(package, package.parts(part.kind)[name])
    return found


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
            raise unusable("it has no such network", name=package_name)
        return stand_in(known), known
    package = allowed.package
    if package.name != package_name or name not in package.networks:
        raise unusable("it has no such network", name=package_name)
    layers = _made(package, name)
    plan = plan_of(layers)
    if allowed.plans is not None and plan != known:
        from models.reasons import NETWORK_PLAN

        raise Refusal(NETWORK_PLAN, problem="they are not those that were approved")
    return layers, plan


@dataclass(frozen=True)
class OwnPart:
    """A function of a package (loss, transform, strategy), with its settings from the study."""

    part: Named
    function: Callable[..., Any]
    settings: Mapping[str, float]

    @classmethod
    def open(cls, part: Named, settings: Mapping[str, float]) -> Self:
        """Import a part's function, and see whether it takes the study's settings.

        Raises Refusal: E_NETWORK_CLOSED, E_NETWORK_PACKAGE, E_PACKAGE_PART.
        """
        try:
            found = function(part)
            unknown = sorted(settings.keys() - _options(found)) if settings else []
        except Refusal:
            raise
        except Exception as error:  # whatever foreign code raises
            raise _bad(part, "its module cannot be imported", repr(error)) from None
        if unknown:  # Only the study's own words: what foreign code calls its arguments must not leave a hospital.
            raise _bad(part, f"it has no argument with a default called {', '.join(unknown)}, which the study sets", "")
        return cls(part, found, settings)

    def call(self, *arguments: object) -> object:
        """Call the function with the study's settings. Raises Refusal E_PACKAGE_PART if it fails."""
        try:
            return self.function(*arguments, **self.settings)
        except Exception as error:
            raise self.bad("it fails", repr(error)) from None

    def bad(self, problem: str, private: str = "") -> Refusal:
        """Return the refusal E_PACKAGE_PART of this part."""
        return _bad(self.part, problem, private)


def _options(function: Callable[..., Any]) -> set[str]:
    """Return the names of a function's arguments with a default: what a study may set."""
    arguments = signature(function).parameters.values()
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return {each.name for each in arguments if each.kind in by_name and each.default is not Parameter.empty}


def _bad(part: Named, problem: str, private: str) -> Refusal:
    return Refusal(PACKAGE_PART, kind=part.kind, name=part.name, problem=problem, private=private)


def _made(package: Package, name: str) -> "nn.Module":
    import torch

    with torch.random.fork_rng(devices=[]):
        layers = _function(package, package.networks[name])()
    if not isinstance(layers, torch.nn.Module):
        raise unusable(f"its network {name} is no torch.nn.Module", name=package.name)
    return layers


def _function(package: Package, place: str) -> Any:
    """Import a function, "module:function". Raises Refusal E_NETWORK_PACKAGE if its module has none of this name."""
    module, _, name = place.partition(":")
    found = getattr(_imported(package, module), name, None)
    if not callable(found):
        raise unusable(f"its module {module} has no function {name}", name=package.name)
    return found


def _imported(package: Package, module: str) -> ModuleType:
    """Import a module of the package from its document, once in a process."""
    finder = next((each for each in sys.meta_path if isinstance(each, _Finder) and each.root == package.root), None)
    if finder is None:
        if package.root in sys.modules:
            raise unusable(f"its module {package.root} was imported before", name=package.name)
        sys.meta_path.insert(0, finder := _Finder(package))
    elif finder.package != package:
        raise unusable(f"another version of its module {package.root} was imported before", name=package.name)
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
