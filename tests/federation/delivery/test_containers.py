"""Compose files, Kubernetes manifests and Containerfile agree with the code and with the operations guide."""

import re
import shutil
import subprocess
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from federation.cli.main import app
from federation.delivery.bundle import PORTS
from federation.delivery.debian_root import GROUP, USER
from federation.delivery.distributions import version_of
from federation.delivery.images import COMMANDS, PROGRAM
from federation.superlink.control import read_server_config
from pipeline.clinic.settings import ClinicSettings
from pipeline.site.folder import SiteSettings
from tests.helpers.containers import COMPOSE, DOCS, KUBERNETES, ROLES, compose_file, manifests, pods

ROOT = Path(__file__).resolve().parents[3]
VERSION = version_of(ROOT)
KUBERNETES_VERSION = "1.32"


def programs(command: list[str]) -> list[str]:
    """The words after the last program of fedthorax that a command line starts."""
    last = max((i for i, word in enumerate(command) if word == f"{PROGRAM}/bin/fedthorax"), default=-1)
    return command[last + 1 :]


def exists(words: list[str]) -> bool:
    group: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(group, "commands"):
            return True
        if word not in group.commands:
            return False
        group = group.commands[word]
    return True


def modules(words: list[str]) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == "-m"]


# --- compose ------------------------------------------------------------------------------------------------


def our_services() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{role}: {name}", service)
        for role in ROLES
        for name, service in compose_file(role)["services"].items()
        if "fedthorax" in service["image"]
    ]


@pytest.mark.parametrize(("name", "service"), our_services(), ids=[name for name, _ in our_services()])
def test_service_has_all_walls(name: str, service: dict[str, Any]) -> None:
    assert service["user"] == f"{USER}:{GROUP}"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not any(word.startswith(("seccomp", "apparmor", "label")) for word in service["security_opt"])
    assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & set(service)
    assert service["image"].endswith(f":{VERSION}")
    assert service["pids_limit"] and service["mem_limit"]
    assert ("healthcheck" in service) != (name == "node: app")  # who has no network cannot be asked


@pytest.mark.parametrize(("name", "service"), our_services(), ids=[name for name, _ in our_services()])
def test_service_starts_what_exists(name: str, service: dict[str, Any]) -> None:
    command = [*service.get("entrypoint", [f"{PROGRAM}/bin/fedthorax"]), *service["command"]]
    probe = service.get("healthcheck", {}).get("test", [])
    assert all(find_spec(module) for module in modules([*command, *probe]))
    if f"{PROGRAM}/bin/fedthorax" in command:
        assert exists(programs(command))
        assert tuple(service["command"]) == COMMANDS[name.partition(":")[0]]


@pytest.mark.parametrize("role", ROLES)
def test_compose_file_publishes_the_ports_of_its_role(role: str) -> None:
    published = [port for service in compose_file(role)["services"].values() for port in service.get("ports", ())]
    others = [f"{port}:{port}" for port in PORTS[role]]
    assert [port for port in published if not port.startswith("127.0.0.1:")] == others


def test_second_container_sees_what_the_sandbox_of_bubblewrap_shows_and_has_no_network() -> None:
    app, site = compose_file("node")["services"]["app"], "/var/lib/fedthorax/site"
    shown = [mount.split(":", 1)[1].removeprefix("?}").partition(":")[2] for mount in app["volumes"]]
    assert shown == [*(f"{site}/{name}:ro" for name in ("site.toml", "cohort", "sandbox")), f"{site}/logs/client.log"]
    assert app["network_mode"] == "none"
    assert not {"networks", "ports", "secrets", "environment"} & set(app)


def test_databases_of_the_tracking_server_cannot_be_reached_from_outside() -> None:
    content = compose_file("server")
    assert content["networks"]["tracking"] == {"internal": True}
    assert content["services"]["postgres"]["networks"] == ["tracking"]
    assert "ports" not in content["services"]["postgres"]


def test_no_secret_is_in_a_variable_or_on_a_command_line() -> None:
    for path in COMPOSE:
        text = path.read_text(encoding="utf-8")
        for line in text.splitlines():
            if re.search(r"(PASSWORD|SECRET|KEY)\w*[=:]", line) and not line.startswith(("#", "    file:")):
                assert "/run/secrets/" in line, line
        named = set(re.findall(r"/run/secrets/(\w+)", text))
        assert named == set(yaml.safe_load(text).get("secrets", {}))


# --- Kubernetes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_manifests_follow_the_schemas_of_kubernetes(role: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    found = list(manifests(role))
    assert len(found) > 6
    for path, content in found:
        try:
            schemas.validate(content, KUBERNETES_VERSION, strict=True)
        except schemas.ValidationError as error:
            raise AssertionError(f"{path.name}: {error.message}") from error


def test_misspelt_field_is_found() -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    _, content = next(each for each in manifests("node") if each[1]["kind"] == "Deployment")
    content["spec"]["template"]["spec"]["securityContext"]["runAsNonRot"] = True
    with pytest.raises(schemas.ValidationError):
        schemas.validate(content, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("role", ROLES)
def test_kustomize_builds_the_manifests(role: str) -> None:
    if shutil.which("kustomize") is None:
        pytest.skip("kustomize is not here")
    done = subprocess.run(["kustomize", "build", KUBERNETES / role], capture_output=True, text=True, check=True)
    built = list(yaml.safe_load_all(done.stdout))
    assert {content["metadata"].get("namespace", f"fedthorax-{role}") for content in built} == {f"fedthorax-{role}"}
    images = set(re.findall(r"image: (\S+)", done.stdout))
    assert images == {f"registry.example/fedthorax-{role}:{VERSION}"}


@pytest.mark.parametrize("role", ROLES)
def test_each_manifest_is_used_or_named_as_an_option(role: str) -> None:
    text = (KUBERNETES / role / "kustomization.yaml").read_text(encoding="utf-8")
    files = {path.name for path in (KUBERNETES / role).iterdir()} - {"kustomization.yaml", "once.yaml"}
    assert files == set(re.findall(r"[\w-]+\.(?:yaml|toml)", text))


@pytest.mark.parametrize("role", ROLES)
def test_pods_are_of_the_security_level_restricted(role: str) -> None:
    """The level's rules: https://kubernetes.io/docs/concepts/security/pod-security-standards/"""
    namespace = next(content for _, content in manifests(role) if content["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    found = list(pods(role))
    assert len(found) >= 2
    for path, pod in found:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), path
        assert pod["automountServiceAccountToken"] is False
        wanted = {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": GROUP}
        assert wanted.items() <= pod["securityContext"].items()
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            walls = container["securityContext"]
            assert walls["allowPrivilegeEscalation"] is False and walls["readOnlyRootFilesystem"] is True
            assert walls["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert not any("hostPort" in port for port in container.get("ports", ()))
            assert "env" not in container and "envFrom" not in container  # secrets are files
        kinds = {kind for volume in pod["volumes"] for kind in volume} - {"name"}
        assert kinds <= {"persistentVolumeClaim", "emptyDir", "configMap", "secret"}


@pytest.mark.parametrize("role", ROLES)
def test_pods_start_what_exists(role: str) -> None:
    for path, pod in pods(role):
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            command = container.get("command", [])
            probes = [container[name]["exec"]["command"] for name in container if name.endswith("Probe")]
            assert all(find_spec(module) for words in [command, *probes] for module in modules(words)), path
            assert command or exists(container["args"]), path
            if path.name == "deployment.yaml" and not command:
                assert tuple(container["args"]) == COMMANDS[role]
                assert len(probes) == 3
                assert tuple(port["containerPort"] for port in container.get("ports", ())) == PORTS[role]
                assert all(probe["timeoutSeconds"] >= 8 for name, probe in container.items() if name.endswith("Probe"))


def test_settings_are_ones_that_the_code_reads(tmp_path: Path) -> None:
    server = read_server_config(KUBERNETES / "server")
    assert (server.port, server.monitoring_port) == (PORTS["server"][0], 9465)
    clinic = tomllib.loads((KUBERNETES / "clinic" / "clinic.toml").read_text(encoding="utf-8"))
    assert ClinicSettings.model_validate(clinic).server.port == PORTS["clinic"][0]
    site = tomllib.loads((KUBERNETES / "node" / "site.toml").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="accepted_by"):  # nobody has accepted it yet
        SiteSettings.model_validate(site)
    site["sandbox"]["accepted_by"] = "Dr No: synthetic patients"
    assert SiteSettings.model_validate(site).monitoring.port == 9464


# --- network policies and the tables of the guides ----------------------------------------------------------


def policies(role: str) -> dict[str, dict[str, Any]]:
    return {
        content["metadata"]["name"]: content["spec"]
        for _, content in manifests(role)
        if content["kind"] == "NetworkPolicy"
    }


def rows(page: str) -> list[tuple[str, str]]:
    """The connections of a guide's table: the direction, and what is at the other end."""
    text = (DOCS / page).read_text(encoding="utf-8")
    table = text[text.index("| network | from | to |") :].partition("\n\n")[0]
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    return [("in" if "in" in row[0].replace("*", "").split(",")[0] else "out", " ".join(row[1:])) for row in found]


# Policy: a word of its row, and the ports that the row or its settings name.
NODE = {
    "node-to-server": ("out", "study's server", {8443}),
    "node-to-pacs": ("out", "the PACS", {443, 104}),
    "node-to-fhir": ("out", "FHIR server", {443}),
    "node-to-omop": ("out", "OMOP database", {5432}),
    "pacs-to-node": ("in", "11112", {11112}),
    "laboratory-to-node": ("in", "2575", {2575}),
}
CLINIC = {
    "browsers-to-clinic": ("in", "8765", {8765}),
    "pacs-to-clinic": ("in", "11112", {11112}),
    "clinic-to-pacs": ("out", "the PACS, as", {443, 104}),
    "clinic-to-results": ("out", "the FHIR server and the HL7 receiver", {443, 2575}),
    "clinic-to-identity": ("out", "the provider of identities", {443}),
}
ALWAYS = {"deny-all", "name-server"}


@pytest.mark.parametrize(
    ("role", "page", "expected"), [("node", "operations.md", NODE), ("clinic", "clinic.md", CLINIC)]
)
def test_policies_are_the_rows_of_the_guide(role: str, page: str, expected: dict[str, Any]) -> None:
    found = policies(role)
    assert found.keys() - ALWAYS == expected.keys()
    table = rows(page)
    assert len(table) == len(expected)
    for name, (direction, word, _) in expected.items():
        assert len([row for row in table if row[0] == direction and word in row[1]]) == 1, name


def test_server_policies_are_the_ingress_and_mlflow() -> None:
    assert policies("server").keys() - ALWAYS == {"hospitals-to-server", "server-to-mlflow"}


@pytest.mark.parametrize("role", ROLES)
def test_policies_allow_one_peer_and_its_ports_and_nothing_else(role: str) -> None:
    expected = {**NODE, **CLINIC, "hospitals-to-server": ("in", "", {8443}), "server-to-mlflow": ("out", "", {443})}
    found = policies(role)
    assert found.pop("deny-all") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    found.pop("name-server")
    for name, spec in found.items():
        way, (rule,) = ("ingress", spec["ingress"]) if "ingress" in spec else ("egress", spec["egress"])
        assert spec["policyTypes"] == [way.capitalize()]
        assert spec["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": f"fedthorax-{role}"}
        assert expected[name][0] == ("in" if way == "ingress" else "out")
        assert {port["port"] for port in rule["ports"]} == expected[name][2]
        assert {port["protocol"] for port in rule["ports"]} == {"TCP"}
        (peer,) = rule["from" if way == "ingress" else "to"]
        assert list(peer) == ["ipBlock"]
        assert peer["ipBlock"]["cidr"] != "0.0.0.0/0" or name == "hospitals-to-server"


# --- Containerfile ------------------------------------------------------------------------------------------


def test_containerfile_has_its_stages_and_fetches_nothing_for_the_program() -> None:
    text = (DOCS / "containers" / "Containerfile").read_text(encoding="utf-8")
    assert re.findall(r"^FROM (\S+) AS (\w+)$", text, re.M) == [
        ("${BASE}", "system"),
        ("system", "program"),
        ("system", "image"),
    ]
    assert re.search(r"^ARG BASE$", text, re.M)  # no base image is chosen here
    assert "RUN --network=none" in text
    for option in ("--no-index", "--require-hashes", "--only-binary :all:"):
        assert option in text
    last = text[text.rindex("FROM") :]
    assert f"USER {USER}:{GROUP}" in last
    assert f"--uid {USER}" in last
    assert f'ENTRYPOINT ["{PROGRAM}/bin/fedthorax"]' in last
    assert not re.search(r"^ADD |curl|wget|https?://", text, re.M)
