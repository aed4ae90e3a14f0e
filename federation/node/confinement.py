"""Start bubblewrap with a filter of system calls and its own session keyring.

    python -I confinement.py BWRAP [ARGUMENT...]

Namespaces hide files, processes and networks, but not the kernel itself: every system call, sockets between virtual
machines (AF_VSOCK), and the keyrings of the user who started the node remain reachable. This program joins a new
session keyring, passes a seccomp filter (seccomp(2)) to bubblewrap with `--seccomp`, and executes bubblewrap, which
applies the filter as its last step. Every process inside inherits the filter and cannot remove it.

The filter allows the calls of systemd's `SystemCallFilter=@system-service` without `@privileged` and `@resources`,
minus the calls that docs/systemd/fedthorax-app@.service also removes:

* A denied call fails with EPERM, as under systemd. Libraries try such calls (scheduling, io_uring, memory policy) and
  work without them. Ending the process instead would also end normal training.
* A system call of another architecture (32-bit x86, x32) ends the process. No program here makes one, and its number
  would have another meaning.
* A call that is newer than this table fails with ENOSYS, as on an older kernel. So does clone3, whose flags a filter
  cannot read. The C library falls back to clone, whose flags are checked.
* A socket of a family other than AF_UNIX and AF_INET fails with EAFNOSUPPORT.

`reachable` checks all of this from inside, for all kinds of sandbox. `confine` applies the filter in a container, where
nobody starts bubblewrap.

Only the standard library is imported, because this file runs as a program outside, before anything else is set up.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

KEYCTL_GET_KEYRING_ID, KEYCTL_JOIN_SESSION_KEYRING = 0, 1
KEY_SPEC_SESSION_KEYRING = -3
KEY_LISTS = (Path("/proc/keys"), Path("/proc/key-users"))
FAMILIES = (int(socket.AF_UNIX), int(socket.AF_INET))
# CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET of sched.h.
NEW_NAMESPACES = 0x80 | 0x20000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
NEWEST = 461  # lsm_list_modules, Linux 6.8; numbers from 424 on are the same on every architecture
X32 = 0x40000000  # added to the number of each call of the x32 interface

# AUDIT_ARCH_* of linux/audit.h.
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers on x86_64 and aarch64; None if the call does not exist there.
CLONE, CLONE3, SOCKET, SOCKETPAIR, KEYCTL = (56, 220), (435, 435), (41, 198), (53, 199), (250, 219)
DENIED: dict[str, tuple[int | None, int | None]] = {
    # The kernel's keyrings, which belong to the user, not to the sandbox.
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": KEYCTL},
    # Other processes and kernel internals.
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272)},
    **{"pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448)},
    **{"perf_event_open": (298, 241), "bpf": (321, 280), "userfaultfd": (323, 282), "lookup_dcookie": (212, 18)},
    **{"syslog": (103, 116), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443)},
    **{"fanotify_init": (300, 262), "fanotify_mark": (301, 263), "lsm_set_self_attr": (460, 460)},
    **{"mincore": (27, 232), "memfd_secret": (447, 447), "map_shadow_stack": (453, 453)},
    # io_uring makes calls that bypass filters.
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    # File systems and namespaces.
    **{"mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51)},
    **{"open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431)},
    **{"fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442)},
    **{"statmount": (457, 457), "listmount": (458, 458), "unshare": (272, 97), "setns": (308, 268)},
    **{"name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "swapon": (167, 224), "swapoff": (168, 225)},
    # The machine.
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "vhangup": (153, 58)},
    **{"init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106)},
    **{"sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170)},
    **{"clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171)},
    **{"ioperm": (173, None), "iopl": (172, None), "modify_ldt": (154, None), "personality": (135, 92)},
    # Users and rights.
    **{"capset": (126, 91), "setuid": (105, 146), "setgid": (106, 144), "setgroups": (116, 159)},
    **{"setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117, 147), "setresgid": (119, 149)},
    **{"setfsuid": (122, 151), "setfsgid": (123, 152)},
    **{"chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54)},
    # Larger shares of the machine's resources.
    **{"setrlimit": (160, 164), "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118)},
    **{"sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274)},
    **{"mbind": (237, 235), "set_mempolicy": (238, 237), "set_mempolicy_home_node": (450, 450)},
    **{"migrate_pages": (256, 238), "move_pages": (279, 239)},
    # Obsolete calls that few kernels still have.
    **{"uselib": (134, None), "ustat": (136, None), "sysfs": (139, None), "_sysctl": (156, None)},
    **{"create_module": (174, None), "get_kernel_syms": (177, None), "query_module": (178, None)},
    **{"nfsservctl": (180, 42)},
}

# Classic BPF (linux/bpf_common.h) over struct seccomp_data: number at 0, architecture at 4, low half of the first
# argument at 16 (both architectures are little-endian).
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16
KILL, ALLOW = 0x80000000, 0x7FFF0000
# prctl(2).
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def fail(number: int) -> int:
    """Return the filter's value that makes a call fail with this errno."""
    return 0x00050000 | number


def build_filter(machine: str) -> bytes:
    """Return the filter as an array of struct sock_filter. Raises KeyError without a table for the machine."""
    architecture = ARCHITECTURES[machine]
    column = list(ARCHITECTURES).index(machine)
    allowed_socket = [
        _step(_LOAD, _ARGUMENT),
        *(_step(_EQUAL, family, if_true=len(FAMILIES) - i) for i, family in enumerate(FAMILIES)),
        _step(_RETURN, fail(errno.EAFNOSUPPORT)),
        _step(_RETURN, ALLOW),
    ]
    no_namespace = [
        _step(_LOAD, _ARGUMENT),
        *_when(_ANY_BIT, NEW_NAMESPACES, [_step(_RETURN, fail(errno.EPERM))]),
        _step(_RETURN, ALLOW),
    ]
    program = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, if_true=1),
        _step(_RETURN, KILL),
        _step(_LOAD, _NUMBER),
        *_when(_AT_LEAST, X32, [_step(_RETURN, KILL)]),
        *_when(_AT_LEAST, NEWEST + 1, [_step(_RETURN, fail(errno.ENOSYS))]),
        *_when(_EQUAL, CLONE3[column], [_step(_RETURN, fail(errno.ENOSYS))]),
        *_when(_EQUAL, CLONE[column], no_namespace),
        *_when(_EQUAL, SOCKET[column], allowed_socket),
        *_when(_EQUAL, SOCKETPAIR[column], allowed_socket),
    ]
    for numbers in DENIED.values():
        if (number := numbers[column]) is not None:
            program += _when(_EQUAL, number, [_step(_RETURN, fail(errno.EPERM))])
    return b"".join([*program, _step(_RETURN, ALLOW)])


def _step(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    """Encode one instruction. The jump offsets are the numbers of following instructions to skip."""
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _when(test: int, value: int, steps: list[bytes]) -> list[bytes]:
    """Return the steps, preceded by a test that skips them if it fails."""
    return [_step(test, value, if_false=len(steps)), *steps]


def confine() -> None:
    """Apply the filter to this process and to all that it starts, where a container and not bubblewrap hides the rest.

    Raises OSError if the kernel does not accept the filter, or has none for this machine.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"there is no filter of system calls for {machine}")
    join_new_keyring(machine)
    content = build_filter(machine)
    instructions = ctypes.create_string_buffer(content, len(content))
    # struct sock_fprog of linux/filter.h: the number of instructions, and where they are.
    program = struct.pack("@HP", len(content) // struct.calcsize("=HBBI"), ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    for option, argument, value in (
        (_SET_NO_NEW_PRIVILEGES, 1, None),
        (_SET_SECCOMP, _MODE_FILTER, ctypes.c_char_p(program)),
    ):
        if libc.prctl(option, ctypes.c_ulong(argument), value, ctypes.c_ulong(0), ctypes.c_ulong(0)):
            raise OSError(ctypes.get_errno(), "the filter of system calls cannot be applied")


def join_new_keyring(machine: str) -> None:
    """Leave the session keyring of the user who started this process. Raises OSError.

    Nothing needs to be done on a kernel without keyrings, or in a container that forbids them.
    """
    number = _keyctl(machine, KEYCTL_JOIN_SESSION_KEYRING, 0)
    if number not in (0, errno.ENOSYS, errno.EPERM):
        raise OSError(number, f"no session keyring: {os.strerror(number)}")


def _keyctl(machine: str, operation: int, argument: int) -> int:
    """Call keyctl(2) with one argument; return its errno, 0 on success."""
    number = KEYCTL[list(ARCHITECTURES).index(machine)]
    libc = ctypes.CDLL(None, use_errno=True)
    answer = libc.syscall(ctypes.c_long(number), ctypes.c_long(operation), ctypes.c_long(argument), ctypes.c_long(0))
    return ctypes.get_errno() if answer == -1 else 0


def reachable() -> Iterator[tuple[str, str]]:
    """Return the parts of the kernel that this process can reach but must not: a public description, and details."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    if status.get("Seccomp", "").strip() != "2":
        yield "every system call", "Seccomp in /proc/self/status"
    if _keyctl(platform.machine(), KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING) not in (errno.ENOSYS, errno.EPERM):
        yield "the kernel's keyrings", "keyctl"
    for path in KEY_LISTS:
        try:
            listed = path.read_bytes()
        except OSError:
            continue
        if listed:
            yield "the names of the kernel's keys", str(path)
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        return
    yield "sockets between virtual machines", "AF_VSOCK"


def main(command: list[str]) -> None:
    """Execute bubblewrap with the filter. Returns only if that is not possible, after printing the reason."""
    machine = platform.machine()
    try:
        content = build_filter(machine)
        join_new_keyring(machine)
        file = os.memfd_create("seccomp", 0)  # without MFD_CLOEXEC: bubblewrap inherits it
        with os.fdopen(os.dup(file), "wb") as writer:
            writer.write(content)
        os.lseek(file, 0, os.SEEK_SET)
        os.execv(command[0], [command[0], "--seccomp", str(file), *command[1:]])  # noqa: S606
    except KeyError:
        sys.stderr.write(f"there is no filter of system calls for {machine}\n")
    except OSError as error:
        sys.stderr.write(f"bubblewrap cannot be started with a filter of system calls: {error}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.exit(1)
