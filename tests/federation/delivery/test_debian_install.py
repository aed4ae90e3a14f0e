"""The Debian packages of the three roles, installed, upgraded, removed and purged by dpkg on a copy of this machine.

The copy is an overlay over this machine's files, in memory and in a mount namespace of its own, so nothing of the
machine changes. The packages hold a small program in place of fedthorax; scripts, units and users are the real ones.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from federation.delivery.debian_package import build_package
from tests.federation.delivery.conftest import PYTHON, SYSTEMCTL, MakeBundle

ROLES = ("node", "server", "clinic")
# Mounts the copy and gives it a systemctl that writes down what it is asked.
_COPY = """
set -e
mount -t tmpfs tmpfs "$1" && cd "$1" && mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
mount --rbind /dev root/dev && mount -t proc proc root/proc && mount -t tmpfs tmpfs root/run
mkdir -p root/run/systemd/system root/packages root/etc/systemd/system
cp "$4" root/usr/local/bin/systemctl
chmod 755 root/usr/local/bin/systemctl
rm -rf root/opt/fedthorax* root/var/lib/fedthorax
cp "$2"/*.deb root/packages
exec chroot root env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive sh -euc "$3"
"""
_SHELL = """
install() { dpkg --no-triggers --force-depends -i "$@" >/dev/null; }
remove() { dpkg --no-triggers "$@" >/dev/null; }
users() { for user in fedthorax fedthorax-app; do ! id $user >/dev/null 2>&1 || echo $user; done | tr '\\n' ' '; }
"""


def can_copy() -> bool:
    programs = all(map(shutil.which, ("dpkg", "dpkg-deb", "debconf-set-selections", "useradd", "unshare")))
    known = Path("/proc/filesystems")
    return programs and os.geteuid() == 0 and known.exists() and "overlay" in known.read_text()


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_copy(), reason="needs root, dpkg, debconf and overlayfs"),
    pytest.mark.skipif(not Path(f"/usr/bin/python{PYTHON}").exists(), reason="needs this Python from the distribution"),
]


def on_a_copy(tmp_path: Path, script: str) -> dict[str, str]:
    """Run shell commands on a copy of this machine; return the lines NAME=TEXT that they print."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (tmp_path / "systemctl").write_text(SYSTEMCTL.format(folder=""))
    command = ["unshare", "-m", "sh", "-c", _COPY, "sh", mounted, tmp_path / "debs", _SHELL + script]
    command.append(tmp_path / "systemctl")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode and re.search(r"mount: .*(permission denied|wrong fs type)", done.stderr):
        pytest.skip("this machine forbids mounts")
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(re.findall(r"^(\w+)=(.*)$", done.stdout, re.M))


@pytest.mark.parametrize("role", ROLES)
def test_package_is_installed_upgraded_removed_and_purged_both_ways(
    role: str, tmp_path: Path, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(role=role)
    monkeypatch.chdir(tmp_path)
    jobs = " fedthorax-ingest@*" if role == "node" else ""
    services = {"node": "fedthorax-node@* fedthorax-app@* fedthorax-listen@*"}.get(role, f"fedthorax-{role}@*")
    build_package(bundle, Path("debs"), epoch=1_700_000_000)  # a release gives a relative folder
    script = f"""
    package=fedthorax-{role} site=/var/lib/fedthorax/one
    install /packages/$package*
    echo "version=$(fedthorax)"
    echo "changed=$(dpkg --verify $package)"  # root may have written modules again that it found stale
    echo "users=$(users)"
    echo "folder=$(stat -c '%U %a' /var/lib/fedthorax)"
    echo "units=$(cd /usr/lib/systemd/system && echo fedthorax-*)"
    echo "documents=$(cd /usr/share/doc/$package && find . -type f | tr '\\n' ' ')"
    echo "manual=$(zcat /usr/share/man/man1/fedthorax.1.gz)"
    mkdir $site && echo key >$site/key && chown -R fedthorax $site
    wants=/etc/systemd/system/multi-user.target.wants && mkdir -p $wants
    ln -s /usr/lib/systemd/system/fedthorax-{role}@.service $wants/fedthorax-{role}@one.service
    for unit in {services}{jobs}; do
        echo "$unit /opt/fedthorax/bin/fedthorax" | sed 's/@\\*/@one.service/' >>/running
    done
    : >/systemctl.log
    install /packages/$package*
    echo "upgraded=$(cat $site/key) $(tr '\\n' ';' </systemctl.log)"
    : >/systemctl.log
    remove --remove $package
    echo "removed=$(cat $site/key) $(tr '\\n' ';' </systemctl.log)"
    echo "left=$(find /opt /usr/bin /usr/share /usr/lib/systemd -path '*fedthorax*')"
    remove --purge $package 2>/said
    echo "kept=$(cat $site/key) $(stat -c %U $site/key) $(cat /said)"
    install /packages/$package*
    echo "$package $package/delete-data boolean true" | debconf-set-selections
    remove --purge $package
    echo "purged=$(ls -d /var/lib/fedthorax 2>&1 >/dev/null | wc -l) $(users)"
    echo "links=$(ls $wants | grep fedthorax || :)"
    """
    seen = on_a_copy(tmp_path, script)
    both = "fedthorax fedthorax-app " if role == "node" else "fedthorax "
    services, jobs = services.replace("@*", "@one.service"), jobs.replace("@*", "@one.service")
    assert (seen["version"], seen["changed"]) == ("fedthorax 0.1.0", "")
    assert (seen["users"], seen["folder"]) == (both, "fedthorax 700")
    assert f"fedthorax-{role}@.service" in seen["units"].split()
    assert seen["manual"] == ".TH FEDTHORAX 1"
    licence = "./licences/little-0.1.0/little-0.1.0.dist-info_licenses_LICENSE"
    documents = f"./changelog.gz ./copyright {licence} ./licences/licences.txt ./sbom.cdx.json"
    assert set(seen["documents"].split()) == set(documents.split())
    assert seen["upgraded"] == f"key daemon-reload;daemon-reload;try-restart {services};"  # of postrm and postinst
    assert seen["removed"] == f"key stop {services}{jobs};daemon-reload;"
    assert seen["left"] == ""
    assert seen["kept"] == "key fedthorax kept: /var/lib/fedthorax, with keys and data"
    assert (seen["purged"], seen["links"]) == ("1 ", "")


def test_purge_of_a_role_spares_what_another_role_uses(tmp_path: Path, make_bundle: MakeBundle) -> None:
    for role in ("node", "clinic"):
        build_package(make_bundle(role=role), tmp_path / "debs", epoch=1_700_000_000)
    script = """
    install /packages/fedthorax-node*
    ! install /packages/fedthorax-clinic* 2>/said
    echo "refused=$(grep -c 'conflicting packages' /said)"
    remove --remove fedthorax-node
    install /packages/fedthorax-clinic*
    echo "fedthorax-node fedthorax-node/delete-data boolean true" | debconf-set-selections
    remove --purge fedthorax-node 2>/said
    echo "spared=$(stat -c %U /var/lib/fedthorax) $(users)$(cat /said)"
    """
    seen = on_a_copy(tmp_path, script)
    assert int(seen["refused"]) >= 1
    assert seen["spared"] == (
        "fedthorax fedthorax fedthorax-app kept: /var/lib/fedthorax, because another installation of fedthorax is there"
    )


def test_program_of_install_sh_is_not_overwritten(tmp_path: Path, make_bundle: MakeBundle) -> None:
    build_package(make_bundle(role="server"), tmp_path / "debs", epoch=1_700_000_000)
    script = """
    mkdir -p /opt/fedthorax-0.1.0 && ln -s fedthorax-0.1.0 /opt/fedthorax
    ! install /packages/fedthorax-server* 2>/said
    echo "said=$(grep -o 'fedthorax is installed by install.sh' /said)"
    echo "files=$(ls /opt/fedthorax-0.1.0)"
    """
    seen = on_a_copy(tmp_path, script)
    assert (seen["said"], seen["files"]) == ("fedthorax is installed by install.sh", "")
