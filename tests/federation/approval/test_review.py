"""The review of an app: its findings and their lines, the difference, and safe display."""

import json
from pathlib import Path

import pytest

from federation.approval import fab
from federation.approval.review import CAUTION, HOSPITAL, MAX_DIFF_LINES, review
from tests.federation.approval.apps import CLIENT, CONFIG, FILES, PYPROJECT, small_app

BASE = fab.read(small_app())


def findings(source: str) -> set[tuple[int, str]]:
    """Return line and name of each finding in a source."""
    app = fab.read(small_app(more=source.encode()))
    return {(f.line, f.what) for f in review(app).findings if f.file == "small/more.py"}


@pytest.mark.parametrize(
    ("source", "line", "what"),
    [
        ("import socket\n", 1, "socket"),
        ("import socket\nsocket.create_connection(('a', 1))\n", 2, "socket.create_connection"),
        ("import urllib.request as u\n", 1, "urllib.request"),
        ("import urllib.request as u\nu.urlopen('a')\n", 2, "urllib.request.urlopen"),
        ("def f():\n    from http.client import HTTPSConnection\n", 2, "http.client.HTTPSConnection"),
        ("import torch\ntorch.hub.load('a', 'b')\n", 2, "torch.hub"),
        ("import asyncio\nasyncio.open_connection('a', 1)\n", 2, "asyncio.open_connection"),
        ("import subprocess\n", 1, "subprocess"),
        ("import os\nos.system('id')\n", 2, "os.system"),
        ("import os as o\no.popen('id')\n", 2, "os.popen"),
        ("from os import execv as run\nrun('a', [])\n", 2, "os.execv"),
        ("from os import execv as run\n", 1, "os.execv"),
        ("import os.path\nos.fork()\n", 2, "os.fork"),
        ("open('a', 'w')\n", 1, "open(...) to write"),
        ("open('a', mode='r+')\n", 1, "open(...) to write"),
        ("m = 'w'\nopen('a', m)\n", 2, "open(...) to write"),
        ("open('a', **{'mode': 'w'})\n", 1, "open(...) to write"),
        ("import io\nio.open('a', 'ab')\n", 2, "open(...) to write"),
        ("from pathlib import Path\nPath('a').open('w')\n", 2, "open(...) to write"),
        ("from pathlib import Path\n(Path('a') / 'b').write_text('x')\n", 2, ".write_text(...)"),
        ("import numpy as np\nnp.save('a', 1)\n", 2, "numpy.save"),
        ("import shutil\n", 1, "shutil"),
        ("eval('1')\n", 1, "eval"),
        ("ｅｖａｌ('1')\n", 1, "eval"),
        ("e = exec\n", 1, "exec"),
        ("compile('1', '', 'eval')\n", 1, "compile"),
        ("__import__('os')\n", 1, "__import__"),
        ("import importlib\n", 1, "importlib"),
        ("import sys\nsys.modules['os']\n", 2, "sys.modules"),
        ("import ctypes\n", 1, "ctypes"),
        ("import pickle\n", 1, "pickle"),
        ("from pickle import loads as read\nread(b'')\n", 2, "pickle.loads"),
        ("import torch\ntorch.load('a')\n", 2, "torch.load"),
        ("import os\nx = os.environ['A']\n", 2, "os.environ"),
        ("import os\nos.environ.get('A')\n", 2, "os.environ"),
        ("from os import getenv\n", 1, "os.getenv"),
        ("x = 'sys' + 'tem'\nimport os\ngetattr(os, x)('id')\n", 3, "getattr(...)"),
        ("getattr(1, '__class__')\n", 1, "getattr(...)"),
        ("setattr(*[1, 2, 3])\n", 1, "setattr(...)"),
        ("().__class__.__bases__[0].__subclasses__()\n", 1, ".__subclasses__"),
        ("(lambda: 0).__globals__\n", 1, ".__globals__"),
        ("globals()['a']\n", 1, "globals"),
        ("__builtins__.print\n", 1, "__builtins__"),
        ("from os import *\n", 1, "os.*"),
        ("import base64\n", 1, "base64"),
        (f"x = '{'A' * 1500}'\n", 1, "a text of 1500 characters"),
        (f"x = 1{' ' * 1500};import_it = 2\n", 1, "1519 characters"),
        ("import threading\n", 1, "threading"),
        ("x = 1  # \u202e } \u2066\n", 1, "U+202E U+2066"),
        ("x = '\x1b[2J'\n", 1, "U+001B"),
        ("# one\r# two\rimport socket\n", 3, "socket"),
        ("def f(:\n", 0, "not looked at"),
        ("x = 1\n" * 50_000, 0, "not looked at"),
        ("x = '\0'\n", 0, "not looked at"),
        (f"x = {'(' * 500}{')' * 500}\n", 0, "not looked at"),
        (f"x = {'-' * 100_000}1\n", 0, "not looked at"),
        ("from pipeline.site.folder import Site\n", 1, "pipeline.site.folder.Site"),
    ],
)
def test_risky_code_is_reported(source: str, line: int, what: str) -> None:
    assert (line, what) in findings(source)


def test_harmless_code_has_no_findings() -> None:
    source = """
import json
import math
import re
from pathlib import Path

import torch
from flwr.clientapp import ClientApp
from PIL import Image

from . import other

code = re.compile("a")
signal = site = 0


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()


def train(model, file, mode):
    model.eval()
    model.compile()
    with open(file) as a, open(file, "rb") as b, Path(file).open() as c, Image.open(file) as d:
        print(json.load(a), b, c, d, mode, code, signal, site)
    return getattr(model, "weight"), math.pi, model.load("x"), __name__
"""
    assert findings(source) == set()


def test_each_finding_has_a_reason() -> None:
    app = fab.read(small_app(more=b"import socket, pickle\neval('1')\n"))
    reasons = {f.what: f.why for f in review(app).findings}
    assert "network" in reasons["socket"]
    assert "runs any code" in reasons["pickle"]
    assert "runs text as code" in reasons["eval"]


def test_own_app_only_calls_installed_packages() -> None:
    result = review(fab.read(fab.build(fab.APP)))
    assert {f.why for f in result.findings} == {HOSPITAL}
    assert result.imports == ["federation"]
    assert result.dependencies == []


def test_review_does_not_run_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = b"from pathlib import Path\nPath('ran').touch()\nraise SystemExit(3)\n"
    review(fab.read(small_app(more=source, conftest=source, sitecustomize=source)))
    assert list(tmp_path.iterdir()) == []


def test_files_are_listed_with_size_and_hash() -> None:
    result = review(BASE)
    assert [name for name, _, _ in result.files] == sorted(FILES)
    by_name = {name: (size, sha256) for name, size, sha256 in result.files}
    assert by_name["small/client_app.py"][0] == len(CLIENT)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing
    assert by_name["small/__init__.py"] == (0, empty)


def test_dependencies_are_shown_in_any_form() -> None:
    for text, shown in (('["evil==1"]', ["evil==1"]), ('"evil"', ["evil"]), ("[1]", ["1"])):
        config = PYPROJECT.replace("dependencies = []", f"dependencies = {text}").encode()
        assert review(fab.read(fab.pack({**FILES, CONFIG: config}))).dependencies == shown


# --- differences ------------------------------------------------------------------------------------------


def test_the_same_app_has_no_difference() -> None:
    assert review(BASE, BASE).difference == []


def test_difference_shows_added_changed_and_removed_files() -> None:
    files = {name: data for name, data in FILES.items() if name != "small/server_app.py"}
    changed = fab.read(fab.pack({**files, "small/client_app.py": CLIENT + b"import os\n", "small/new.py": b"x = 1\n"}))
    result = review(changed, BASE)
    assert result.compared_with == BASE.sha256
    assert "+import os" in result.difference
    assert {"--- /dev/null", "+++ small/new.py", "+x = 1"} <= set(result.difference)
    assert {"--- small/server_app.py", "+++ /dev/null", "-app = ServerApp()"} <= set(result.difference)
    assert not any("__init__" in line for line in result.difference)


def test_difference_without_a_previous_app_shows_everything_as_added() -> None:
    result = review(BASE)
    assert result.compared_with == ""
    assert "+from flwr.clientapp import ClientApp" in result.difference


def test_code_after_a_hidden_line_end_shows_in_the_difference() -> None:
    changed = fab.read(small_app(client_app=CLIENT.replace(b"\n\napp", b"  # \rimport os\n\napp")))
    assert "+import os" in review(changed, BASE).difference


def test_long_difference_is_truncated_with_count() -> None:
    result = review(fab.read(small_app(more=b"x = 1\n" * 3000)), BASE)
    assert len(result.difference) == MAX_DIFF_LINES
    assert result.left_out > 1900


def test_files_too_long_to_compare_are_listed() -> None:
    before, after = (fab.read(small_app(more=text * 2001)) for text in (b"x = 1\n", b"y = 1\n"))
    assert review(after, before).difference == ["*** small/more.py differs, and is too long to compare: read both"]


# --- screen output ----------------------------------------------------------------------------------------


def test_review_is_json_and_contains_the_caution() -> None:
    content = json.loads(json.dumps(review(BASE).to_json()))
    assert content["caution"] == CAUTION
    assert "proves nothing" in CAUTION
    assert content["sha256"] == BASE.sha256
