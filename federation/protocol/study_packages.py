"""Let a process of a study run the code of packages that the study names, or build tensors without that code."""

from pathlib import Path

from federation.protocol.package_files import handed_over, in_run, plans_beside, read_plans
from federation.protocol.study_config import Study
from models import own_code
from models.network_settings import NetworkSettings
from models.own_packages import Named, Package, installed, read_package, unusable
from models.reasons import NETWORK_CLOSED, NETWORK_UNLIKE
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably


def bring_packages(study: Study, run: Path) -> None:
    """Copy the installed packages that a study names into the run's folder.

    Raises Refusal: E_NETWORK_PACKAGE if one is not installed or has no such part, E_NETWORK_UNLIKE.
    """
    for part in study.own_parts:
        package_name, _, name = part.name.partition(":")
        package = installed(package_name)
        if package.sha256 != part.code:
            raise Refusal(NETWORK_UNLIKE, name=package.name, private=f"installed: {package.sha256}")
        if name not in package.parts(part.kind):
            raise unusable(f"it has no such {part.kind}", name=package.name)
        run.mkdir(parents=True, exist_ok=True)
        write_durably(in_run(run, part.code), package.content)


def allow_in_run(study: Study, run: Path) -> None:
    """Let this process of the server, or of a simulation, run the code of the packages that a study names.

    Raises Refusal: E_NETWORK_CLOSED if the run lacks one, E_NETWORK_PACKAGE, E_NETWORK_UNLIKE.
    """
    for part in study.own_parts:
        if not own_code.is_allowed(part.code):
            own_code.allow(_package(in_run(run, part.code), part))


def allow_at_site(study: Study, site: Path) -> None:
    """Let this process, in the sandbox, run the code of a study's network, loss and transform, as they were approved.

    The gateway has checked the approval; the bytes are hashed again here, and these bytes are what is imported. A
    network must have the approved tensors. A strategy is the server's. `site`: the site's folder. Raises Refusal as
    `allow_in_run` does.
    """
    for part in study.own_parts:
        if part.kind != "strategy" and not own_code.is_allowed(part.code):
            document = handed_over(site, part.code)
            own_code.allow(_package(document, part), read_plans(plans_beside(document)))


def allow_plans(network: NetworkSettings, packages: Path) -> None:
    """Let this process build a stand-in for a study's network from its approved plan. `packages`: SITE_DIR/networks.

    Raises Refusal E_NETWORK_CLOSED if there is no plan.
    """
    if network.is_own and not own_code.is_allowed(network.code):
        own_code.allow_plans(network.code, read_plans(packages / f"{network.code}.plans"))


def _package(file: Path, part: Named) -> Package:
    try:
        package = read_package(file.read_bytes())
    except OSError as error:
        raise Refusal(NETWORK_CLOSED, private=str(file)) from error
    if package.sha256 != part.code:
        raise Refusal(NETWORK_UNLIKE, name=package.name, private=str(file))
    return package
