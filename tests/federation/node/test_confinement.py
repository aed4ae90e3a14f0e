"""Tests of the seccomp filter: its decision for each system call, its call numbers, and real processes under it."""

import ctypes
import errno
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from federation.node import confinement
from federation.node.confinement import ALLOW, ARCHITECTURES, DENIED, KILL, NEW_NAMESPACES, build_filter, fail

UNIT = Path(__file__).resolve().parents[3] / "docs" / "systemd" / "fedthorax-app@.service"
I386 = 0x40000003
# System calls that training needs: (x86_64, aarch64).
ORDINARY = {"read": (0, 63), "mmap": (9, 222), "execve": (59, 221), "futex": (202, 98), "wait4": (61, 260)}


def run_filter(content: bytes, *, number: int, architecture: int, argument: int = 0) -> int:
    """The filter's decision for a system call. Interprets the bpf(4) instructions that the filter uses."""
    steps = [struct.unpack_from("=HBBI", content, at) for at in range(0, len(content), 8)]
    data = struct.pack("<IIQQ", number, architecture, 0, argument)
    loaded, at = 0, 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        match code:
            case 0x20:
                (loaded,) = struct.unpack_from("<I", data, value)
            case 0x06:
                return value
            case 0x15 | 0x35 | 0x45:
                holds = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}[code]
                at += if_true if holds else if_false
            case _:
                raise AssertionError(f"an instruction of another kind: {code:#x}")


@pytest.fixture(params=list(ARCHITECTURES))
def ask(request: pytest.FixtureRequest) -> Callable[..., int]:
    """The decision of one architecture's filter. A call is given by its numbers on all architectures."""
    content, column = build_filter(request.param), list(ARCHITECTURES).index(request.param)

    def ask(call: tuple[int | None, ...] | int, argument: int = 0, architecture: int = 0) -> int:
        number = call if isinstance(call, int) else call[column]
        assert number is not None
        own = ARCHITECTURES[request.param]
        return run_filter(content, number=number, architecture=architecture or own, argument=argument)

    ask.column = column  # type: ignore[attr-defined]
    return ask


def test_ordinary_calls_are_allowed(ask: Callable[..., int]) -> None:
    assert {ask(call) for call in ORDINARY.values()} == {ALLOW}


def test_each_denied_call_fails_with_eperm(ask: Callable[..., int]) -> None:
    here = [numbers for numbers in DENIED.values() if numbers[ask.column] is not None]  # type: ignore[attr-defined]
    assert len(here) > 70
    assert {ask(numbers) for numbers in here} == {fail(errno.EPERM)}


@pytest.mark.parametrize("call", [confinement.SOCKET, confinement.SOCKETPAIR])
def test_only_unix_and_ipv4_sockets_are_allowed(ask: Callable[..., int], call: tuple[int, int]) -> None:
    answers = {family: ask(call, argument=family) for family in range(64)}
    assert {family for family, answer in answers.items() if answer == ALLOW} == {1, 2}
    assert {answer for answer in answers.values() if answer != ALLOW} == {fail(errno.EAFNOSUPPORT)}
    assert ask(call, argument=40 | 1 << 32) == fail(errno.EAFNOSUPPORT)  # the kernel reads only the low 32 bits
    assert ask(call, argument=2 | 1 << 40) == ALLOW


def test_threads_and_processes_are_allowed_but_namespaces_are_denied(ask: Callable[..., int]) -> None:
    threads, fork, vfork = 0x3D0F00, 0x1200011, 0x4111
    assert [ask(confinement.CLONE, argument=flags) for flags in (threads, fork, vfork)] == [ALLOW] * 3
    for bit in range(32):
        if NEW_NAMESPACES >> bit & 1:
            assert ask(confinement.CLONE, argument=fork | 1 << bit) == fail(errno.EPERM)
    assert ask(confinement.CLONE3) == fail(errno.ENOSYS)


def test_calls_newer_than_the_table_fail_with_enosys(ask: Callable[..., int]) -> None:
    assert ask(confinement.NEWEST) == ALLOW
    assert {ask(number) for number in range(confinement.NEWEST + 1, 1000)} == {fail(errno.ENOSYS)}


def test_call_of_another_architecture_kills_the_process(ask: Callable[..., int]) -> None:
    assert ask(20, architecture=I386) == KILL
    assert {ask(call, architecture=I386) for call in ORDINARY.values()} == {KILL}
    assert {ask(confinement.X32 + number) for number in (0, 1, 41, 512, 545)} == {KILL}


def test_unsupported_architecture_gets_no_filter() -> None:
    with pytest.raises(KeyError):
        build_filter("riscv64")


# --- call numbers -----------------------------------------------------------------------------------------


def test_call_numbers_match_libseccomp() -> None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp is not here")
    calls = DENIED | {
        **{"clone": confinement.CLONE, "clone3": confinement.CLONE3},
        **{"socket": confinement.SOCKET, "socketpair": confinement.SOCKETPAIR},
        "lsm_list_modules": (confinement.NEWEST, confinement.NEWEST),
        **ORDINARY,
    }

    def number(name: str, architecture: int) -> int | None:
        found = library.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(architecture), name.encode())
        return found if found >= 0 else None  # negative: not on this architecture

    found = {name: tuple(number(name, architecture) for architecture in ARCHITECTURES.values()) for name in calls}
    assert found == calls


# Harmless calls that reveal nothing. systemd denies them only because they are newer than its list of allowed calls.
HARMLESS = {"cachestat", "futex_requeue", "futex_wait", "futex_wake", "pkey_alloc", "pkey_free", "pkey_mprotect"}
GONE = {"afs_syscall", "getpmsg", "putpmsg", "security", "tuxcall", "vserver"}  # never implemented in Linux


def test_bubblewrap_and_systemd_deny_the_same_calls() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    first, *more = re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.M)
    assert all(line.startswith("~") for line in more)
    by_systemd = members("@known") - members(first) | set(expand(" ".join(more).replace("~", "").split()))
    by_us = {*DENIED, "clone3"}
    assert by_us - by_systemd == {"clone3"}  # systemd denies it by RestrictNamespaces=
    with_numbers = {name for name in by_systemd if is_here(name)}
    assert with_numbers - by_us - HARMLESS - GONE == set()


def expand(names: list[str]) -> Iterator[str]:
    for name in names:
        yield from members(name) if name.startswith("@") else [name]


def members(group: str) -> set[str]:
    command = ["systemd-analyze", "syscall-filter", "--no-pager", group]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = [line.strip() for line in listed.splitlines()[1:]]
    return set(expand([name for name in names if name and not name.startswith("#")]))


def is_here(name: str) -> bool:
    """Whether an architecture of the table has this call, with a number up to NEWEST."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp is not here")
    numbers = [
        library.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(architecture), name.encode())
        for architecture in ARCHITECTURES.values()
    ]
    return any(0 <= number <= confinement.NEWEST for number in numbers)


def test_bubblewrap_and_systemd_allow_the_same_socket_families() -> None:
    (names,) = re.findall(r"^RestrictAddressFamilies=(.*)$", UNIT.read_text(), re.M)
    assert set(names.split()) == {"AF_UNIX", "AF_INET"}
    assert confinement.FAMILIES == (1, 2)


def test_systemd_unit_hides_the_kernel_key_lists() -> None:
    (paths,) = re.findall(r"^InaccessiblePaths=(.*)$", UNIT.read_text(), re.M)
    assert [word.removeprefix("-+") for word in paths.split()] == list(map(str, confinement.KEY_LISTS))


# --- real processes ---------------------------------------------------------------------------------------

APPLY = """
import ctypes, json, platform, sys
from federation.node import confinement

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]

libc = ctypes.CDLL(None, use_errno=True)
if sys.argv[1] == "filtered":
    content = confinement.build_filter(platform.machine())
    program = Program(len(content) // 8, content)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
"""
WORK = """
import multiprocessing, subprocess
import torch
from torch.utils.data import DataLoader, TensorDataset

def square(number):
    return number * number

if __name__ == "__main__":
    layer = torch.nn.Conv3d(1, 2, 3)
    for (batch,) in DataLoader(TensorDataset(torch.ones(4, 1, 8, 8, 8)), batch_size=2, num_workers=2):
        layer(batch).sum().backward()
    squares = {}
    for way in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(way).Pool(2) as pool:
            squares[way] = pool.map(square, [2, 3])
    echo = subprocess.run(["echo", "hello"], capture_output=True, text=True).stdout
    print(json.dumps({"grown": layer.weight.grad.abs().sum().item() > 0, "squares": squares, "echo": echo}))
"""


def in_process(code: str, *arguments: str, folder: Path) -> str:
    script = folder / "script.py"
    script.write_text(APPLY + code)
    root = str(Path(confinement.__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_training_with_worker_processes_works_under_the_filter(tmp_path: Path) -> None:
    done = json.loads(in_process(WORK, "filtered", folder=tmp_path))
    squares = {way: [4, 9] for way in ("fork", "spawn", "forkserver")}
    assert done == {"grown": True, "squares": squares, "echo": "hello\n"}


def test_reachable_resources_are_reported(tmp_path: Path) -> None:
    look = "print(json.dumps([what for what, _ in confinement.reachable()]))"
    bare = json.loads(in_process(look, "bare", folder=tmp_path))
    assert "every system call" in bare
    filtered = set(json.loads(in_process(look, "filtered", folder=tmp_path)))
    assert filtered <= {"the names of the kernel's keys"}  # no filter hides these; see tests/e2e/test_sandbox.py


# --- the keyring ------------------------------------------------------------------------------------------

SEARCH = """
import ctypes, errno, platform, sys
numbers = {"x86_64": (248, 250), "aarch64": (217, 219)}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
ADD_KEY, KEYCTL = (ctypes.c_long(number) for number in numbers)
SESSION, JOIN, SEARCH = ctypes.c_long(-3), ctypes.c_long(1), ctypes.c_long(10)

def add(name):
    return libc.syscall(ADD_KEY, b"user", name, b"secret", ctypes.c_long(6), SESSION)

def search(name):
    return libc.syscall(KEYCTL, SEARCH, SESSION, b"user", name, ctypes.c_long(0)) > 0
"""


INSIDE = "print(search(b'outside'), add(b'inside') > 0, search(b'inside'), sys.argv[1:2] == ['--seccomp'])"
OUTSIDE = """
import subprocess
libc.syscall(KEYCTL, JOIN, None)  # not the keyring of whoever runs the tests
if add(b"outside") < 0:
    sys.exit(77)
inside = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(inside.stdout + inside.stderr + str(search(b"inside")))
"""


@pytest.mark.parametrize(
    ("confined", "found"), [(False, "True True True False\nTrue\n"), (True, "False True True True\nFalse\n")]
)
def test_confined_process_has_its_own_session_keyring(tmp_path: Path, confined: bool, found: str) -> None:
    """Runs without the filter, which would deny keyctl. The stand-in for bubblewrap only searches for keys."""
    if platform.machine() not in ARCHITECTURES:
        pytest.skip("no filter for this machine")
    inside = tmp_path / "bwrap"
    inside.write_text(f"#!{sys.executable} -I\n{SEARCH}\n{INSIDE}\n")
    inside.chmod(0o755)
    program = [sys.executable, "-I", confinement.__file__] if confined else []
    command = [sys.executable, "-I", "-c", SEARCH + OUTSIDE, *program, str(inside)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode == 77:
        pytest.skip("this kernel or container has no keyrings for us")
    assert done.stdout == found, done.stderr


# --- without bubblewrap -------------------------------------------------------------------------------------

UNDER_THE_FILTER = """
import errno, json, os, socket
from federation.node import confinement
confinement.confine()

def of(act):
    try:
        act()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed"

print(json.dumps({
    "namespace": of(lambda: os.unshare(os.CLONE_NEWUSER)) if hasattr(os, "unshare") else "EPERM",
    "chroot": of(lambda: os.chroot("/")),
    "netlink": of(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "inet": of(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()),
    "left open": [details for _, details in confinement.reachable() if not details.startswith("/proc")],
    "child": os.spawnlp(os.P_WAIT, "grep", "grep", "-q", "Seccomp:.*2", "/proc/self/status"),
}))
"""


@pytest.mark.skipif(platform.machine() not in ARCHITECTURES, reason="no filter for this machine")
def test_process_and_its_children_are_confined_without_bubblewrap() -> None:
    command = [sys.executable, "-P", "-c", UNDER_THE_FILTER]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        **{"namespace": "EPERM", "chroot": "EPERM", "netlink": "EAFNOSUPPORT", "inet": "allowed"},
        **{"left open": [], "child": 0},
    }


def test_process_on_an_unsupported_machine_is_not_confined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(OSError, match="no filter of system calls for riscv64"):
        confinement.confine()
