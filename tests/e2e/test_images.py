"""The container images themselves: their walls, their health checks, and a study of two nodes and a server in them.

Building images takes minutes and gigabytes, so these tests run only on images that are there:

    FEDTHORAX_IMAGES=dist/fedthorax-0.1.0-images pytest tests/e2e/test_images.py

They need root, podman with a runtime that works here, and some 10 GB in podman's storage. Synthetic patients only.
"""

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from configs import preset_files
from federation.delivery.debian_root import GROUP, USER
from federation.system.process import free_port
from tests.helpers.containers import COMPOSE, compose_file

IMAGES = os.environ.get("FEDTHORAX_IMAGES", "")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not IMAGES, reason="FEDTHORAX_IMAGES names no folder of images; `make images` makes them"),
]
ROLES = ("node", "server", "clinic")
WALLS = ("--read-only", "--cap-drop=ALL", f"--user={USER}:{GROUP}", "--security-opt=no-new-privileges")
HOME = "/var/lib/fedthorax"
PYTHON = "/opt/fedthorax/bin/python"
# Podman else adds a line of its own to what a command prints, on machines with the old cgroups.
ENVIRONMENT = os.environ | {"PODMAN_IGNORE_CGROUPSV1_WARNING": "1"}


def podman(*arguments: str | Path, check: bool = True, seconds: float = 900) -> subprocess.CompletedProcess[str]:
    command = ["podman", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, env=ENVIRONMENT)
    assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
    return done


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """The images by role, as podman loads them."""
    found = {}
    for role in ROLES:
        (archive,) = Path(IMAGES).glob(f"*-{role}-image-*.oci.tar")
        found[role] = podman("load", "--quiet", "--input", archive).stdout.strip().rpartition(" ")[2]
    return found


def inside(image: str, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a program in a container with all walls and without a network."""
    program, *arguments = command
    walls = (*WALLS, "--tmpfs=/tmp", "--network=none", *options)
    return podman("run", "--rm", *walls, f"--entrypoint={program}", image, *arguments, check=False)


# --- what an image is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_image_names_its_user_its_program_and_its_origin(images: dict[str, str], role: str) -> None:
    (found,) = json.loads(podman("image", "inspect", images[role]).stdout)
    config = found["Config"]
    assert config["User"] == f"{USER}:{GROUP}"
    assert config["Entrypoint"] == ["/opt/fedthorax/bin/fedthorax"]
    assert config["Cmd"] == compose_file(role)["services"][role]["command"]
    labels = config["Labels"]
    assert {f"org.opencontainers.image.{name}" for name in ("title", "version", "revision", "licenses")} <= set(labels)
    assert len(found["RootFS"]["Layers"]) == 2


@pytest.mark.parametrize("role", ROLES)
def test_program_runs_with_all_walls(images: dict[str, str], role: str) -> None:
    done = inside(images[role], "/opt/fedthorax/bin/fedthorax", "--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "fedthorax"), done.stderr


@pytest.mark.parametrize("role", ROLES)
def test_image_has_no_installer_and_no_shell_where_none_is_needed(images: dict[str, str], role: str) -> None:
    look = "import shutil; print(*filter(shutil.which, ['sh', 'bash', 'perl', 'apt', 'dpkg', 'pip', 'uv', 'curl']))"
    done = inside(images[role], PYTHON, "-I", "-c", look)
    assert done.stdout.split() == (["sh"] if role == "node" else []), done.stderr


SETUID = """
import os, stat
for folder, _, names in os.walk("/"):
    if folder.startswith(("/proc", "/sys", "/dev")): continue
    for name in names:
        path = os.path.join(folder, name)
        about = os.lstat(path)
        if stat.S_ISREG(about.st_mode) and (about.st_mode & 0o6000 or os.access(path, os.W_OK)):
            print(path)
"""


@pytest.mark.parametrize("role", ROLES)
def test_user_can_change_no_file_of_the_image_and_gain_no_rights(images: dict[str, str], role: str) -> None:
    done = podman(
        "run", "--rm", f"--user={USER}", "--network=none", f"--entrypoint={PYTHON}", images[role], "-I", "-c", SETUID
    )
    written = {line for line in done.stdout.splitlines() if not line.startswith(("/run/", "/etc/"))}  # podman's own
    assert written == set()


# --- the sandbox --------------------------------------------------------------------------------------------

BWRAP = (
    *("/usr/bin/bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"),
    *("--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"),
    *("--ro-bind", "/opt", "/opt", "--proc", "/proc", "--dev", "/dev", PYTHON, "-I", "-c", "print('confined')"),
)


def test_bubblewrap_needs_an_unmasked_proc(images: dict[str, str]) -> None:
    masked = inside(images["node"], *BWRAP)
    assert "Can't mount proc" in masked.stderr
    for option in ("unmask=ALL", "systempaths=unconfined"):  # podman's word, and Docker's
        assert inside(images["node"], *BWRAP, options=(f"--security-opt={option}",)).stdout == "confined\n"


# --- a study in containers ----------------------------------------------------------------------------------


class Containers:
    """The containers of one study, on the machine's own network, with folders below `data`."""

    def __init__(self, images: dict[str, str], data: Path) -> None:
        self.images, self.data, self.started = images, data, list[str]()

    def run(self, role: str, *command: str, check: bool = True) -> str:
        """Run one command of fedthorax until it ends; return what it printed."""
        done = podman("run", "--rm", *self._options(), self.images[role], *command, check=check)
        return done.stdout + done.stderr

    def start(self, role: str, name: str, *command: str, url: str, options: tuple[str, ...] = ()) -> None:
        """Start a service with its health check."""
        probe = json.dumps([PYTHON, "-I", "-m", "federation.system.health_probe", url])
        health = (f"--health-cmd={probe}", "--health-interval=disable")
        podman("run", "--detach", f"--name={name}", *self._options(), *health, *options, self.images[role], *command)
        self.started.append(name)

    def start_app(self, site: str, name: str, *, network: str = "none", restart: str = "always") -> None:
        """Start the second container of a node, as the compose file does."""
        service = compose_file("node")["services"]["app"]
        mounts = [each.replace("${NODE_DATA:?}/site", f"{self.data}/{site}") for each in service["volumes"]]
        volumes = [f"--volume={each.replace(f'{HOME}/site', f'{HOME}/{site}')}" for each in mounts]
        program, *arguments = [word.replace(f"{HOME}/site", f"{HOME}/{site}") for word in service["entrypoint"]]
        walls = [*WALLS[:3], *(f"--security-opt={each}" for each in service["security_opt"])]
        walls += [f"--tmpfs={each}" for each in service["tmpfs"]]
        podman(
            *("run", "--detach", f"--name={name}", f"--network={network}", f"--restart={restart}", *walls, *volumes),
            *(f"--entrypoint={program}", self.images["node"], *arguments),
        )
        self.started.append(name)

    def wait_healthy(self, name: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while podman("healthcheck", "run", name, check=False).returncode:
            assert time.monotonic() < deadline, podman("logs", name).stdout
            time.sleep(2)

    def remove(self) -> None:
        for name in reversed(self.started):
            podman("rm", "--force", "--time=20", name, check=False)

    def _options(self) -> tuple[str, ...]:
        return (*WALLS, "--tmpfs=/tmp:size=1g,mode=1777", "--network=host", f"--volume={self.data}:{HOME}")


@pytest.fixture(scope="module")
def containers(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    data = tmp_path_factory.mktemp("data")
    os.chown(data, USER, GROUP)
    data.chmod(0o700)
    found = Containers(images, data)
    yield found
    found.remove()


def prepare(containers: Containers, name: str, port: int, more: str) -> None:
    """Make a site of a synthetic hospital; few patients, and the study `quick` approved."""
    site = containers.data / name
    containers.run("node", "node", "init", name, "--from", f"hospitals/{name}")
    (site / "keys" / "pseudonym.key").write_bytes(hashlib.sha256(f"synthetic 50 {name}".encode()).digest())
    text = (site / "site.toml").read_text().replace("min_patients = 3\n", "min_patients = 2\n", 1)
    text = text.replace("[gateway]\n", "[gateway]\nmin_local_steps = 1\n", 1)
    (site / "site.toml").write_text(f"{text}\n[monitoring]\nport = {port}\n{more}")
    containers.run("node", "node", "ingest", name)


def unmasked(profile: Path) -> tuple[str, ...]:
    """Return the options with which bubblewrap can work in a container of podman, as docs/containers.md says."""
    content = json.loads(Path("/usr/share/containers/seccomp.json").read_text())
    content["syscalls"].append({"names": ["sethostname"], "action": "SCMP_ACT_ALLOW", "args": []})
    for rule in content["syscalls"][:-1]:
        rule["names"] = [name for name in rule["names"] if name != "sethostname"]
    profile.write_text(json.dumps(content))
    return "--security-opt=unmask=ALL", f"--security-opt=seccomp={profile}"


def test_a_server_and_two_nodes_in_containers_finish_a_study(containers: Containers) -> None:
    """One node uses bubblewrap in an unmasked container, the other one a second container without a network."""
    data, ports = containers.data, {name: free_port() for name in ("server", "north", "south", "monitoring")}
    containers.run("node", "phantom", "hospitals", "--sites", "2", "--patients", "10", "--no-defects")
    (data / "quick.toml").write_bytes(preset_files()["quick"].read_bytes())
    (data / "quick.toml").chmod(0o644)
    containers.run("server", "server", "init", "server", "--port", str(ports["server"]))
    settings = data / "server" / "server.toml"
    settings.write_text(settings.read_text().replace("monitoring_port = 0", f"monitoring_port = {ports['monitoring']}"))
    url = "http://127.0.0.1:{}/health/{}"
    containers.start(
        *("server", "trial-server", "server", "start", "server"), url=url.format(ports["monitoring"], "ready")
    )
    containers.wait_healthy("trial-server")
    kinds = {"north": "", "south": '\n[sandbox]\nkind = "container"\n'}
    for name, more in kinds.items():
        prepare(containers, name, ports[name], more)
        code = json.loads(containers.run("server", "server", "enrol", "server", name, "--json"))["code"]
        containers.run("node", "node", "join", name, code, "--as", name)
        containers.run("node", "node", "approve-study", name, "quick.toml", "--yes")
        walls = unmasked(data / "seccomp.json") if name == "north" else ()
        ready = url.format(ports[name], "ready")
        containers.start("node", f"trial-{name}", "node", "start", name, url=ready, options=walls)
    for name in kinds:
        containers.wait_healthy(f"trial-{name}")
    containers.start_app("south", "trial-app")
    done = podman("exec", "trial-server", "fedthorax", "study", "run", "quick.toml", "--server", "server", check=False)
    assert done.returncode == 0, (done.stdout, done.stderr, podman("logs", "trial-app").stderr)
    for name in kinds:
        ledger = containers.run("node", "node", "ledger", name, "--verify")
        assert "E_" not in ledger
    (run,) = (data / "server" / "runs").glob("quick-*")
    assert (run / "results.json").exists()


def test_second_container_with_a_network_starts_nothing(containers: Containers) -> None:
    """The attack: an operator, or a changed compose file, gives the container a network."""
    if not (containers.data / "south" / "sandbox").exists():
        pytest.skip("the study before did not begin")
    containers.start_app("south", "trial-open", network="host", restart="no")
    assert podman("wait", "trial-open").stdout.strip() == "1"
    assert "E_SANDBOX_OPEN" in podman("logs", "trial-open").stderr


def test_restarted_node_and_its_second_container_find_each_other(containers: Containers) -> None:
    """A new start of the node has a new secret and socket; the second container must not keep the old ones."""
    if "trial-app" not in containers.started:
        pytest.skip("the study before did not begin")
    podman("restart", "--time=30", "trial-south")
    containers.wait_healthy("trial-south")
    done = podman("exec", "trial-server", "fedthorax", "study", "run", "quick.toml", "--server", "server", check=False)
    assert done.returncode == 0, (done.stdout, done.stderr, podman("logs", "trial-app").stderr)


def test_compose_files_are_the_ones_that_podman_compose_reads() -> None:
    for path in COMPOSE:
        assert yaml.safe_load(path.read_text())["services"]
