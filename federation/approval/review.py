"""Describe an app to the person at the hospital who decides whether it may run.

A review lists the app's files, the changes since the last approved app, and the places in its sources to check. It
finds them in the syntax trees (`ast`); nothing of the app is run, imported or written. The list proves nothing: code
can hide what it does, for example in a name assembled from letters or in a value that comes with the weights. The list
shows where to begin reading.
"""

import ast
import builtins
import difflib
import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from federation.approval.fab import App

CAUTION = (
    "This list proves nothing: code that hides what it does is not on it. Approve only code that you have read, or "
    "code from somebody you trust, by a hash that you received from them over another channel."
)
MAX_DIFF_LINES = 1000
_MAX_COMPARED_LINES = 2000  # of one file: the time for a comparison grows with their square
_MAX_PARSED_CHARACTERS = 2**18
_LONG = 1000  # characters in a line or a text

HOSPITAL = "calls the hospital's installed fedthorax, whose code is not part of this app"
FILES = "writes, moves or deletes files"
REFLECTION = "accesses Python objects by name, which can hide what is called"
HIDDEN = "unpacks or decodes data, which can hide code or data from the reader"
# Explanations by imported name; each also covers the names below it, and the longest matching name applies.
_WORTH_A_LOOK = {
    "network: could send data past the gateway; the sandbox has no network": """
        socket ssl select selectors socketserver http urllib urllib3 requests httpx aiohttp ftplib smtplib poplib
        imaplib nntplib telnetlib xmlrpc grpc paramiko websockets websocket zmq dns boto3 botocore google.cloud azure
        mlflow wandb huggingface_hub torch.hub torch.distributed asyncio.open_connection asyncio.start_server
        asyncio.open_unix_connection webbrowser pynetdicom dicomweb_client""",
    "starts or controls processes": """
        subprocess multiprocessing pty os.system os.popen os.fork os.forkpty os.kill os.killpg os.execl os.execle
        os.execlp os.execlpe os.execv os.execve os.execvp os.execvpe os.spawnl os.spawnle os.spawnlp os.spawnlpe
        os.spawnv os.spawnve os.spawnvp os.spawnvpe os.posix_spawn os.posix_spawnp os.startfile concurrent.futures
        asyncio.create_subprocess_exec asyncio.create_subprocess_shell torch.multiprocessing""",
    FILES: """
        shutil tempfile fileinput os.remove os.unlink os.rename os.renames os.replace os.rmdir os.removedirs os.mkdir
        os.makedirs os.symlink os.link os.mkfifo os.mknod os.truncate os.chmod os.chown os.open os.write
        os.memfd_create torch.save numpy.save numpy.savez numpy.savez_compressed numpy.savetxt numpy.memmap
        logging.FileHandler logging.handlers sqlite3 zipfile tarfile""",
    "runs text as code: what runs may not be visible here": """
        eval exec compile code codeop runpy timeit torch.jit torch._dynamo numexpr""",
    "imports by a name that is computed at run time, or changes where Python looks for modules": """
        __import__ importlib imp pkgutil zipimport zipapp site sys.path sys.modules sys.meta_path sys.path_hooks""",
    "accesses memory or native code, outside Python's rules": """
        ctypes cffi _ctypes mmap gc faulthandler torch.utils.cpp_extension torch.ops""",
    "pickle or similar: reading it runs any code that the data contains": """
        pickle _pickle cPickle cloudpickle dill joblib marshal shelve copyreg torch.load torch.serialization numpy.load
        pandas.read_pickle""",
    "reads or changes the environment, which may contain passwords and paths": """
        os.environ os.environb os.getenv os.getenvb os.putenv os.unsetenv dotenv getpass""",
    REFLECTION: """
        globals locals vars inspect builtins __builtins__ sys._getframe sys.settrace sys.setprofile
        operator.attrgetter operator.methodcaller types.CodeType types.FunctionType unittest.mock""",
    HIDDEN: "base64 binascii codecs zlib gzip bz2 lzma quopri uu",
    "continues to run beside the task or after it": "threading _thread atexit signal sched daemon weakref.finalize",
    HOSPITAL: "federation pipeline models",
}
_NAMES = {name: why for why, names in _WORTH_A_LOOK.items() for name in names.split()}
_WRITERS = """
    write_text write_bytes touch unlink mkdir rmdir rename symlink_to hardlink_to to_csv to_pickle to_parquet to_json
    to_excel to_hdf to_sql tofile savefig save_file save_as"""
_WRITING_METHODS = frozenset(_WRITERS.split())  # of any object
_PLAIN_DUNDERS = frozenset(("__init__", "__name__", "__doc__", "__version__"))
NOWHERE = "/dev/null"
_LINE_END = re.compile(r"\r\n|\r|\n")  # as Python counts lines


@dataclass(frozen=True)
class Finding:
    """A place to check; `line` 0 means the whole file."""

    file: str
    line: int
    what: str
    why: str


@dataclass(frozen=True)
class Review:
    """Everything that is shown of an app. Texts from the app are unchanged: show them through `printable`."""

    app: str
    sha256: str
    files: list[tuple[str, int, str]]  # path, bytes, SHA-256
    dependencies: list[str]
    imports: list[str]  # the top-level names of imported modules
    findings: list[Finding]
    compared_with: str  # SHA-256 of the app that `difference` is relative to; "" if none
    difference: list[str] = field(default_factory=list)
    left_out: int = 0  # lines of the difference beyond `MAX_DIFF_LINES`

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "caution": CAUTION}


def look_at(sources: Mapping[str, str]) -> tuple[list[Finding], set[str]]:
    """Return the places to check in texts, by path, and the top-level names that their Python files import."""
    findings: list[Finding] = []
    imports: set[str] = set()
    for name, text in sources.items():
        findings += _odd_characters(name, text)
        if name.endswith(".py"):
            found, modules = _look(name, text)
            findings += found
            imports |= modules
    return sorted(findings, key=lambda finding: (finding.file, finding.line, finding.what)), imports


def review(app: App, before: App | None = None) -> Review:
    """Review an app; `before` is the app that its difference is relative to."""
    sources = {name: data.decode("utf-8-sig") for name, data in sorted(app.files.items())}
    findings, imports = look_at(sources)
    difference = list(_difference(before.files if before else {}, app.files))
    dependencies = app.config["project"].get("dependencies", [])
    return Review(
        app=app.name,
        sha256=app.sha256,
        files=[(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in sorted(app.files.items())],
        dependencies=[str(one) for one in dependencies] if isinstance(dependencies, list) else [str(dependencies)],
        imports=sorted(imports),
        findings=findings,
        compared_with=before.sha256 if before else "",
        difference=difference[:MAX_DIFF_LINES],
        left_out=max(0, len(difference) - MAX_DIFF_LINES),
    )


# --- differences ------------------------------------------------------------------------------------------


def _difference(old: dict[str, bytes], new: dict[str, bytes]) -> Iterator[str]:
    """Yield a unified difference of all files, without end-of-line characters."""
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if before is None or after is None:
            yield f"--- {name if after is None else NOWHERE}"
            yield f"+++ {name if before is None else NOWHERE}"
            yield from (f"{'+' if before is None else '-'}{line}" for line in _lines(before or after or b""))
        elif max(len(_lines(before)), len(_lines(after))) > _MAX_COMPARED_LINES:
            yield f"*** {name} differs, and is too long to compare: read both"
        else:
            yield from difflib.unified_diff(_lines(before), _lines(after), name, name, lineterm="")


def _lines(data: bytes) -> list[str]:
    return _LINE_END.split(data.decode("utf-8"))


# --- places to check --------------------------------------------------------------------------------------


def _odd_characters(file: str, text: str) -> Iterator[Finding]:
    """Find characters that make a source look different from what it is ("Trojan Source", CVE-2021-42574)."""
    for number, line in enumerate(_LINE_END.split(text), start=1):
        odd = sorted({c for c in line if not c.isprintable() and c not in "\t\f"})
        if odd:
            names = " ".join(f"U+{ord(c):04X}" for c in odd[:5])
            yield Finding(file, number, names, "invisible characters: the code that runs may differ from what is shown")
        elif file.endswith(".py") and len(line) > _LONG:
            yield Finding(file, number, f"{len(line)} characters", "a very long line: read all of it")


def _look(file: str, text: str) -> tuple[list[Finding], set[str]]:
    """Return the findings of one source, and the modules that it imports."""
    try:
        if len(text) > _MAX_PARSED_CHARACTERS:
            raise ValueError
        with warnings.catch_warnings(action="ignore"):  # a warning would print part of the source on the terminal
            nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [Finding(file, 0, "not looked at", "it is not valid Python or too long, but may still run")], set()
    imported = _imported(nodes)
    found = {
        Finding(file, getattr(node, "lineno", 0), what, why)
        for node in nodes
        for what, why in _findings(node, imported)
    }
    return list(found), {name.partition(".")[0] for name in imported.values()}


def _imported(nodes: list[ast.AST]) -> dict[str, str]:
    """Map each imported name to what it stands for, wherever in the file it is imported."""
    names: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]  # `import a.b` binds a, `import a.b as c` binds a.b
                names |= {alias.asname: alias.name} if alias.asname else {top: top}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _findings(node: ast.AST, imported: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what one node of the tree uses, and the explanation."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, why) for alias in node.names if (why := _why(alias.name)))
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        for alias in node.names:
            if why := _why(f"{node.module}.{alias.name}"):
                yield f"{node.module}.{alias.name}", why
            if alias.name == "*":
                yield f"{node.module}.*", "imports all names of a module: calls below may refer to them"
    elif isinstance(node, ast.Name) and (hasattr(builtins, node.id) or node.id == "__builtins__"):
        if node.id in _NAMES:
            yield node.id, _NAMES[node.id]
    elif isinstance(node, ast.Attribute):
        name = _dotted(node, imported)
        if name in _NAMES and _NAMES[name] is not HOSPITAL:
            yield name, _NAMES[name]
        if node.attr.startswith("__") and node.attr not in _PLAIN_DUNDERS:
            yield f".{node.attr}", REFLECTION
    elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and len(node.value) > _LONG:
        yield f"a text of {len(node.value)} characters", HIDDEN
    elif isinstance(node, ast.Call):
        yield from _call(node, imported)


def _call(node: ast.Call, imported: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    name = _dotted(node.func, imported)
    last = name.rpartition(".")[2]
    if last == "open" and _may_write(node, imported):
        yield "open(...) to write", FILES
    elif isinstance(node.func, ast.Attribute) and last in _WRITING_METHODS:
        yield f".{last}(...)", FILES
    elif _is_imported(node.func, imported) and (why := _why(name)) and why is not HOSPITAL:
        yield name, why
    elif name in ("getattr", "setattr", "delattr"):
        attribute = node.args[1] if len(node.args) > 1 else None
        if not isinstance(attribute, ast.Constant) or str(attribute.value).startswith("_"):
            yield f"{name}(...)", REFLECTION


def _may_write(call: ast.Call, imported: Mapping[str, str]) -> bool:
    """Tell whether an `open` may write: its mode says so, or is not a constant."""
    is_function = isinstance(call.func, ast.Name) or _is_imported(call.func, imported)
    position = 1 if is_function else 0  # open(path, mode), path.open(mode)
    modes = [*call.args[position : position + 1], *(k.value for k in call.keywords if k.arg in ("mode", None))]
    return any(not isinstance(mode, ast.Constant) or bool(set(str(mode.value)) & set("wxa+")) for mode in modes)


def _is_imported(node: ast.AST, imported: Mapping[str, str]) -> bool:
    """Tell whether `a` of `a.b.c` is an imported name."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in imported


def _dotted(node: ast.AST, imported: Mapping[str, str]) -> str:
    """Return `a.b.c` with imported names resolved; "?" stands for a first part that is not a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    first = imported.get(node.id, node.id) if isinstance(node, ast.Name) else "?"
    return ".".join([first, *reversed(parts)])


def _why(name: str) -> str:
    """Return the explanation of the longest known name that is `name` or contains it; "" if there is none."""
    while name and name not in _NAMES:
        name = name.rpartition(".")[0]
    return _NAMES.get(name, "")
