"""Reasons why a release cannot be made, verified or installed. install.sh prints those that begin with E_INSTALL."""

from models.refusal import Reason

TREE_CHANGED = Reason(
    "E_TREE_CHANGED",
    "the source has changes that are in no commit, so nobody could build this release again",
    "Commit them, or remove them: `git status` lists them.",
)
BUILD_FAILED = Reason(
    "E_BUILD_FAILED",
    "{step} failed",
    "Read the output above. A missing package: `make release` needs the extra `release` and, for the viewer, npm.",
)
BUNDLE_UNFIT = Reason(
    "E_BUNDLE_UNFIT",
    "a package can be built only from an unpacked bundle for one Python version",
    "Make one: `make release RELEASE='--role node --python 3.11'`; unpack its tar file, and name that folder.",
)
LOCK_NO_WHEEL = Reason(
    "E_LOCK_NO_WHEEL",
    "{library} has no wheel for Python {python} on Linux x86_64",
    "Give another version of it in constraints.txt, then run `make lock` again.",
)
IMAGE_PYTHON = Reason(
    "E_IMAGE_PYTHON",
    "an image needs a bundle for Python {pythons}, which Debian has",
    "Make the release with `--python` and one of these versions.",
)
RELEASE_SIGNATURE = Reason(
    "E_RELEASE_SIGNATURE",
    "no trusted key signed SHA256SUMS of this folder",
    "Do not use this copy. Fetch it again, and compare the key's SHA-256 with its sender over another channel.",
)
NO_RELEASE = Reason(
    "E_NO_RELEASE",
    "the folder to verify does not exist, or is none",
    "Give the folder of a release, of an unpacked bundle or of a model first, and the publisher's key with --key.",
)
NO_SUMS = Reason(
    "E_NO_SUMS",
    "the folder holds neither SHA256SUMS with its signature nor a model with model.sig, so there is nothing to verify",
    "Give the folder as its publisher made it. If it lost these files, do not use this copy: fetch it again.",
)
RELEASE_FILES = Reason(
    "E_RELEASE_FILES",
    "the files of this folder are not the signed ones: {problem}",
    "Do not use this copy. Fetch it again, and unpack it into an empty folder.",
)
# The texts are those of install.sh; what it fills in stands in braces here.
INSTALL_ROOT = Reason(
    "E_INSTALL_ROOT",
    "a system-wide installation needs root",
    "Run it as root, or with --user as the user who will run the services.",
)
INSTALL_FILES = Reason(
    "E_INSTALL_FILES",
    "a file of this folder is missing, changed or not in SHA256SUMS",
    "Unpack the bundle again, and verify it.",
)
INSTALL_SIGNATURE = Reason(
    "E_INSTALL_SIGNATURE",
    "SHA256SUMS is not signed with this key",
    "Do not install it. Fetch it again, and compare the key's SHA-256 with its sender over another channel.",
)
INSTALL_UNVERIFIED = Reason(
    "E_INSTALL_UNVERIFIED",
    "the signature cannot be checked: there is no openssl, or no key at this path",
    "Install openssl from your distribution, and check the path of --key.",
)
INSTALL_MACHINE = Reason(
    "E_INSTALL_MACHINE",
    "this bundle is for Linux on x86_64, and this machine is {system} on {processor}",
    "Install on a machine of that kind.",
)
INSTALL_PYTHON = Reason(
    "E_INSTALL_PYTHON",
    "no Python fits: this bundle is for {pythons}, outside of home directories if system-wide",
    "Install one of these versions from your distribution, name another with --python, or fetch another bundle.",
)
INSTALL_GLIBC = Reason(
    "E_INSTALL_GLIBC",
    "this bundle needs glibc {needed} or newer, found: {found}",
    "Use a newer release of the distribution.",
)
INSTALL_PREFIX = Reason(
    "E_INSTALL_PREFIX",
    "{place} is not a folder, or this user cannot write to it",
    "Name another place with --prefix, or correct this one.",
)
INSTALL_HIDDEN = Reason(
    "E_INSTALL_HIDDEN",
    "services of the system do not see programs below {prefix}",
    "Name a place with --prefix that is outside of /home, /root, /run/user, /tmp and /var/tmp.",
)
INSTALL_DISK = Reason(
    "E_INSTALL_DISK",
    "{needed} MB are needed below {prefix}, and {found} MB are free",
    "Free disk space, or name a place on another disk with --prefix.",
)
INSTALL_NOEXEC = Reason(
    "E_INSTALL_NOEXEC",
    "programs cannot run below {prefix}",
    "Name a place with --prefix whose file system is not mounted with noexec.",
)
INSTALL_PORT = Reason(
    "W_INSTALL_PORT",
    "a program of this machine uses port {port}",
    "If it is not this service itself, set another port in the settings file before you start it.",
)
INSTALL_OTHER = Reason(
    "E_INSTALL_OTHER",
    "something else is where version {version} would be: {target}",
    "Remove it as it came: with its install.sh (--uninstall) or with apt. If it was made by hand, move it away.",
)
INSTALL_UNITS = Reason(
    "E_INSTALL_UNITS",
    "the unit {unit} starts another program, below {prefix}",
    "Remove that program as it came (install.sh --prefix DIR --uninstall, or apt), or upgrade it there. "
    "Correct a drop-in with systemctl edit.",
)
INSTALL_FAILED = Reason(
    "E_INSTALL_FAILED",
    "the program could not be installed, and what ran before stays as it was",
    "Read the output above. Run install.sh again when the cause is removed.",
)
INSTALL_RUNNING = Reason(
    "E_INSTALL_RUNNING",
    "a service of this installation is running: {service}",
    "Stop and disable it with systemctl, or restart it if you have upgraded. Then run this again.",
)
LICENCE = Reason(
    "E_LICENCE",
    "the licence of {library} does not permit the release, or nobody has read it: {licence}",
    "Use another library, or read its licence and add it to federation/delivery/licences.py.",
)
RELEASE_THERE = Reason(
    "E_RELEASE_THERE",
    "a release of this version exists already",
    "A release is never changed. Raise the version in pyproject.toml, or move the folder away if nobody has it yet.",
)
