"""Try all ways out of a sandbox and print the results as JSON: "open", or "closed" with the reason.

It runs as a program, inside the sandbox and outside, from its source text, with the standard library only. Its
argument is JSON that describes the resources outside that it tries to reach.
"""

import ctypes
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from pathlib import Path

TO = json.loads(sys.argv[1])
SECONDS = 3
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
CLONE_NEWUSER = 0x10000000
LIBC = ctypes.CDLL(None, use_errno=True)
# System call numbers: the C library has no function for most of them.
NUMBERS = {
    "x86_64": {
        **{"add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321, "userfaultfd": 323, "clone3": 435},
        **{"perf_event_open": 298, "process_vm_readv": 310, "io_uring_setup": 425, "kcmp": 312, "personality": 135},
    },
    "aarch64": {
        **{"add_key": 217, "request_key": 218, "keyctl": 219, "bpf": 280, "userfaultfd": 282, "clone3": 435},
        **{"perf_event_open": 241, "process_vm_readv": 270, "io_uring_setup": 425, "kcmp": 272, "personality": 92},
    },
}[platform.machine()]
SESSION_KEYRING, KEYCTL_SEARCH, KEYCTL_READ = -3, 10, 11


class NotHereError(Exception):
    """This machine does not have the resource, neither inside nor outside."""


def tcp(host, port):
    with socket.create_connection((host, port), SECONDS) as caller:
        caller.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert caller.recv(100)


def udp(host, port, content=b"?"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
        caller.settimeout(SECONDS)
        caller.sendto(content, (host, port))
        assert caller.recv(100)


def unix(name):
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(SECONDS)
        caller.connect(name)
        caller.sendall(b"?")
        assert caller.recv(100)


def address():
    if not TO["addresses"]:
        raise NotHereError
    return TO["addresses"][0]


def dns():
    """Send a DNS query for example.org, type A."""
    udp("127.0.0.1", TO["udp_port"], b"\0\1\1\0\0\1\0\0\0\0\0\0\7example\3org\0\0\1\0\1")


def curl():
    command = ["curl", "--silent", "--max-time", "3", f"http://127.0.0.1:{TO['port']}/"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.stdout == b"open", f"exit code {done.returncode}"


def raw():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


def foreign_processes():
    seen = [path.name for path in Path("/proc").glob("[0-9]*")]
    assert str(TO["sleeper"]) in seen, f"{len(seen)} processes"


def ptrace():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, TO["sleeper"], 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(TO["sleeper"], 0x40000000)  # __WALL
    libc.ptrace(PTRACE_DETACH, TO["sleeper"], 0, 0)


def memory():
    Path(f"/proc/{TO['sleeper']}/environ").read_bytes()


def namespace():
    pid = os.fork()
    if pid == 0:
        os._exit(ctypes.CDLL(None).unshare(CLONE_NEWUSER) and 1)
    assert os.waitpid(pid, 0)[1] == 0, "refused"


def proxy():
    assert "proxy.example" in str(dict(os.environ))


def machine():
    assert socket.gethostname() != "sandbox"


def sysctl():
    setting = Path("/proc/sys/vm/swappiness")
    setting.write_text(setting.read_text())


def call(name, *arguments):
    """Make a system call. Raises OSError if it fails."""
    words = [a if isinstance(a, (bytes, ctypes.Array)) else ctypes.c_long(a) for a in arguments]
    answer = LIBC.syscall(ctypes.c_long(NUMBERS[name]), *words)
    if answer == -1:
        raise OSError(ctypes.get_errno(), name)
    return answer


def read_key():
    """Read the secret in the session keyring outside."""
    key = call("keyctl", KEYCTL_SEARCH, SESSION_KEYRING, b"user", TO["key"].encode(), 0)
    content = ctypes.create_string_buffer(100)
    length = call("keyctl", KEYCTL_READ, key, content, 100)
    assert content.raw[:length] == b"secret of another"


def key_names():
    assert TO["key"] in Path("/proc/keys").read_text()


def descriptor(name, *arguments):
    """Make a system call that returns a file descriptor, and close it."""
    os.close(call(name, *arguments))


def perf():
    """Count the CPU clock of this process: PERF_TYPE_SOFTWARE, 112 bytes, PERF_COUNT_SW_CPU_CLOCK, user mode only."""
    attributes = bytearray(112)
    attributes[0], attributes[4], attributes[40] = 1, 112, 0b01100000
    descriptor("perf_event_open", (ctypes.c_char * 112).from_buffer(attributes), 0, -1, -1, 0)


def bpf():
    """Create an array map with one entry: map_type 2, key 4 bytes, value 4 bytes."""
    attributes = b"".join(number.to_bytes(4, "little") for number in (2, 4, 4, 1)) + bytes(56)
    descriptor("bpf", 0, ctypes.create_string_buffer(attributes, 72), 72)


def io_uring():
    descriptor("io_uring_setup", 1, ctypes.create_string_buffer(120))


def another_memory():
    """Read the memory of a child with process_vm_readv. Permitted for a child, unless the filter denies the call."""
    secret = ctypes.create_string_buffer(b"of the child", 12)
    copy = ctypes.create_string_buffer(12)
    child = os.fork()
    if child == 0:
        signal.pause()
    local, remote = (
        ctypes.create_string_buffer(ctypes.addressof(buffer).to_bytes(8, "little") + (12).to_bytes(8, "little"), 16)
        for buffer in (copy, secret)
    )
    try:
        call("process_vm_readv", child, local, 1, remote, 1, 0)
        assert copy.raw == b"of the child"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def traced_child():
    """Call PTRACE_TRACEME in a child."""
    child = os.fork()
    if child == 0:
        os._exit(LIBC.ptrace(0, 0, 0, 0) and 1)
    assert os.waitpid(child, 0)[1] == 0, "refused"


def family(name):
    socket.socket(getattr(socket, name), socket.SOCK_DGRAM if name == "AF_NETLINK" else socket.SOCK_STREAM).close()


def alg():
    socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close()


def clone_namespace():
    """Call clone(2) with CLONE_NEWUSER instead of unshare(2). The child exits at once."""
    number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
    child = LIBC.syscall(ctypes.c_long(number), ctypes.c_long(CLONE_NEWUSER | signal.SIGCHLD), 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    if child == -1:
        raise OSError(ctypes.get_errno(), "clone")
    os.waitpid(child, 0)


def write(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    os.utime(path)


def attempt(action, *arguments):
    try:
        action(*arguments)
    except NotHereError:
        return "not here"
    except (OSError, AssertionError) as error:
        return f"closed: {error!r}"
    return "open"


SITE = Path(TO["write"]["site.toml"]).parent
RESULTS = {
    "tcp loopback": attempt(tcp, "127.0.0.1", TO["port"]),
    "tcp address": attempt(lambda: tcp(address(), TO["port"])),
    "udp loopback": attempt(udp, "127.0.0.1", TO["udp_port"]),
    "udp address": attempt(lambda: udp(address(), TO["udp_port"])),
    "dns query": attempt(dns),
    "curl": attempt(curl),
    "raw socket": attempt(raw),
    "abstract socket": attempt(unix, "\0" + TO["abstract"]),
    "unix socket": attempt(unix, TO["unix"]),
    "foreign processes": attempt(foreign_processes),
    "signal": attempt(os.kill, TO["sleeper"], 0),
    "ptrace": attempt(ptrace),
    "memory of another": attempt(memory),
    "new namespace": attempt(namespace),
    "kernel setting": attempt(sysctl),
    "read key": attempt(read_key),
    "names of keys": attempt(key_names),
    "add key": attempt(call, "add_key", b"user", TO["key"].encode() + b" planted", b"?", 1, SESSION_KEYRING),
    "request key": attempt(call, "request_key", b"user", TO["key"].encode(), 0, 0),
    "bpf": attempt(bpf),
    "perf": attempt(perf),
    "io_uring": attempt(io_uring),
    "userfaultfd": attempt(descriptor, "userfaultfd", 1),  # UFFD_USER_MODE_ONLY
    "memory of a child": attempt(another_memory),
    "traced child": attempt(traced_child),
    "compared processes": attempt(call, "kcmp", os.getpid(), os.getpid(), 0, 0, 0),
    "personality": attempt(call, "personality", 0xFFFFFFFF),
    "cloned namespace": attempt(clone_namespace),
    **{f"socket {name}": attempt(family, name) for name in ("AF_VSOCK", "AF_NETLINK", "AF_INET6")},
    "socket AF_ALG": attempt(alg),
    "proxy variable": attempt(proxy),
    "name of the machine": attempt(machine),
    "runtime": attempt(tcp, "127.0.0.1", 9094),
    "devices": [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]],
    "site listing": sorted(path.name for path in SITE.iterdir()),
    **{f"read {name}": attempt(Path(path).read_bytes) for name, path in TO["read"].items()},
    **{f"write {name}": attempt(write, path) for name, path in TO["write"].items()},
}
sys.stdout.write(json.dumps(RESULTS))
