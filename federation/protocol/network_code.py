"""Let a process of a study run the code of a network of one's own, or build its tensors without that code."""

from pathlib import Path

from federation.protocol.network_files import IN_RUN, handed_over, plans_beside, read_plans
from models import own_networks
from models.network import NetworkSettings
from models.own_networks import Package, read_package
from models.reasons import NETWORK_CLOSED, NETWORK_UNLIKE
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably


def bring_network(network: NetworkSettings, run: Path) -> None:
    """Copy the installed package of a study's network, if it is one, into the run's folder.

    Raises Refusal: E_NETWORK_PACKAGE, E_NETWORK_UNLIKE.
    """
    if not network.is_own:
        return
    package = own_networks.installed(network.architecture.partition(":")[0])
    if package.sha256 != network.code:
        raise Refusal(NETWORK_UNLIKE, name=package.name, private=f"installed: {package.sha256}")
    run.mkdir(parents=True, exist_ok=True)
    write_durably(run / IN_RUN, package.content)


def allow_in_run(network: NetworkSettings, run: Path) -> None:
    """Let this process of the server run the code of a study's network, if it is a package's.

    Raises Refusal: E_NETWORK_CLOSED if the run has none, E_NETWORK_PACKAGE, E_NETWORK_UNLIKE.
    """
    if network.is_own and not own_networks.is_allowed(network.code):
        own_networks.allow(_package(run / IN_RUN, network))


def allow_at_site(network: NetworkSettings, site: Path) -> None:
    """Let this process, in the sandbox, run the code of a study's network with the tensors that were approved.

    The gateway has checked the approval; the bytes are hashed again here, and these bytes are what is imported. `site`:
    the site's folder. Raises Refusal as `allow_in_run` does.
    """
    if network.is_own and not own_networks.is_allowed(network.code):
        document = handed_over(site, network.code)
        own_networks.allow(_package(document, network), read_plans(plans_beside(document)))


def allow_plans(network: NetworkSettings, networks: Path) -> None:
    """Let this process build a stand-in for a study's network from its approved plan. `networks`: SITE_DIR/networks.

    Raises Refusal E_NETWORK_CLOSED if there is no plan.
    """
    if network.is_own and not own_networks.is_allowed(network.code):
        own_networks.allow_plans(network.code, read_plans(networks / f"{network.code}.plans"))


def _package(file: Path, network: NetworkSettings) -> Package:
    try:
        package = read_package(file.read_bytes())
    except OSError as error:
        raise Refusal(NETWORK_CLOSED, private=str(file)) from error
    if package.sha256 != network.code:
        raise Refusal(NETWORK_UNLIKE, name=package.name, private=str(file))
    return package
