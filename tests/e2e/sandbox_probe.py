"""Tries every way out of a sandbox, and prints what came of each as JSON: "open", or "closed" and why.

Runs as a program, within the sandbox and outside, from its text alone: only the standard library is there. Its
argument names, as JSON, what stands outside for it to find.
"""

import ctypes
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

TO = json.loads(sys.argv[1])
SECONDS = 3
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
CLONE_NEWUSER = 0x10000000


class NotHereError(Exception):
    """This machine has none of it, within or outside."""


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
    """A query for example.org, type A, as a resolver sends it."""
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
    "proxy variable": attempt(proxy),
    "name of the machine": attempt(machine),
    "runtime": attempt(tcp, "127.0.0.1", 9094),
    "devices": [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]],
    "site listing": sorted(path.name for path in SITE.iterdir()),
    **{f"read {name}": attempt(Path(path).read_bytes) for name, path in TO["read"].items()},
    **{f"write {name}": attempt(write, path) for name, path in TO["write"].items()},
}
sys.stdout.write(json.dumps(RESULTS))
