"""The scanner finds planted data in every encoding that docs/canary.md names, and causes no false alarm."""

import base64
import bz2
import gzip
import io
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from urllib.parse import quote

import numpy as np
import pytest
import torch
from flwr.app import MetricRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.network import build_network
from models.network_settings import NetworkSettings
from tests.canary import layers
from tests.canary.pixels import STRETCH, WINDOW
from tests.canary.scanner import UNREAD, Planted, Scanner
from tests.canary.texts import TooWeak

NAME, IDENTIFIER, UID = "Bergqvist^Sylvi", "4401728395566", "1.2.826.0.1.3680043.8.498.7741029385566120"
ROW = f"17,{IDENTIFIER},2020-04-03T11:20,Détecté"
TEXTS = (NAME, IDENTIFIER, UID, ROW)


def body(seed: int = 3, size: int = 4000) -> NDArray[np.float32]:
    """Return a line of pixels in HU: smooth anatomy with edges, and the noise of a sharp kernel, 60 HU."""
    rng = np.random.default_rng(seed)
    smooth = np.convolve(rng.standard_normal(size + 40), np.hanning(41), "valid")[:size]
    return np.rint(np.where(smooth > 0, 40.0, -820.0) + smooth * 30 + rng.normal(0, 60, size)).astype(np.float32)


SCANNER = Scanner([Planted("text", TEXTS), Planted("scan", lines=(body(),))])
TEXT_SCANNER = Scanner([Planted("text", TEXTS)])  # texts only, because the search for pixels is slower


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", data)
    return file.getvalue()


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


def spelt(data: bytes) -> bytes:
    return json.dumps(list(data)).encode()


WRITINGS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": bytes,
    "hex": lambda data: data.hex().encode(),
    "capital hex": lambda data: data.hex().upper().encode(),
    "hex with colons": lambda data: data.hex(":").encode(),
    "C escapes": lambda data: "".join(f"\\x{byte:02x}" for byte in data).encode(),
    "base64": base64.b64encode,
    "base64, second phase": lambda data: base64.b64encode(b"?" + data),
    "base64, third phase": lambda data: base64.b64encode(b"??" + data),
    "base64 for addresses": base64.urlsafe_b64encode,
    "base64 in lines": base64.encodebytes,
    "percent": lambda data: quote(data).encode(),
    "all percent": lambda data: "".join(f"%{byte:02X}" for byte in data).encode(),
    "numbers of bytes": spelt,
    "zlib": zlib.compress,
    "zlib, fast": lambda data: zlib.compress(data, 1),
    "zlib, stored": lambda data: zlib.compress(data, 0),
    "gzip": gzip.compress,
    "zip": zipped,
    "deflate": raw_deflate,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "base64 of zlib": lambda data: base64.b64encode(zlib.compress(data)),
    "gzip of hex of base64": lambda data: gzip.compress(base64.b64encode(data).hex().encode()),
}
SPELLINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": str.encode,
    "capitals": lambda text: text.upper().encode(),
    "small letters": lambda text: text.lower().encode(),
    "latin-1": lambda text: text.encode("latin-1"),
    "utf-16-le": lambda text: text.encode("utf-16-le"),
    "utf-16-be": lambda text: text.encode("utf-16-be"),
    "reversed": lambda text: text[::-1].encode(),
    "JSON": lambda text: json.dumps(text)[1:-1].encode(),
    "letters as float64": lambda text: np.array(list(text.encode("latin-1")), "<f8").tobytes(),
    "letters as float32": lambda text: np.array(list(text.encode("latin-1")), ">f4").tobytes(),
    "letters as int64": lambda text: np.array(list(text.encode("latin-1")), "<i8").tobytes(),
    "letters as int32": lambda text: np.array(list(text.encode("latin-1")), ">i4").tobytes(),
}


@pytest.mark.slow
@pytest.mark.parametrize("writing", WRITINGS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    text=st.sampled_from(TEXTS),
    spelling=st.sampled_from(sorted(SPELLINGS)),
    before=st.integers(0, 700),
    seed=st.integers(0, 2**32),
)
def test_text_is_found_at_any_offset_in_any_encoding(
    writing: str, text: str, spelling: str, before: int, seed: int
) -> None:
    hidden = WRITINGS[writing](SPELLINGS[spelling](text))
    data = noise(seed, before) + hidden + noise(seed + 1, 300)
    assert {hit.planted for hit in TEXT_SCANNER.scan(data)} == {"text"}, (writing, spelling)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["<f8", ">f8", "<f4", ">f4", "<f2", ">f2", "<i4", ">i4", "<i2", ">i2", "<u2", ">u2", "u1", "i1", "<i8"]
)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    start=st.integers(0, 4000 - 300),
    scale=st.floats(0.02, 1.0),
    negative=st.booleans(),
    backwards=st.booleans(),
    stride=st.integers(1, 4),
    before=st.integers(0, 999),
)
def test_pixels_are_found_under_any_scale_and_offset(
    kind: str, start: int, scale: float, negative: bool, backwards: bool, stride: int, before: int
) -> None:
    """`scale`: the share of the format's range that the values take, at least 250 steps for an integer format."""
    stretch = body()[start : start + 300].astype(np.float64)
    dtype = np.dtype(kind)
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (-3.0, 3.0)
    scale = max(scale, 250 / (high - low)) if dtype.kind in "iu" else scale
    share = (stretch - stretch.min()) / np.ptp(stretch)
    values = low + (high - low) * scale * (1 - share if negative else share)
    values = (np.rint(values) if dtype.kind in "iu" else values).astype(dtype)
    if kind == "<i8":
        stride = 1
    mixed = np.frombuffer(noise(before, 300 * stride * dtype.itemsize), dtype).copy()
    mixed[::stride] = values[::-1] if backwards else values
    data = noise(before + 1, before) + mixed.tobytes() + noise(before + 2, 500)
    assert {hit.planted for hit in SCANNER.scan(data)} == {"scan"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        int(IDENTIFIER).to_bytes(8, "little"),
        int(IDENTIFIER).to_bytes(8, "big"),
        struct.pack("<d", int(IDENTIFIER)),
        struct.pack(">d", int(IDENTIFIER)),
        bytes.fromhex("0" + IDENTIFIER),
        MetricRecord({"n": int(IDENTIFIER)}).deflate(),
    ],
    ids=["little endian", "big endian", "float64", "float64, big endian", "packed decimals", "protobuf"],
)
def test_identifier_stored_as_number_is_found(number: bytes) -> None:
    for before in range(20):
        assert {hit.planted for hit in TEXT_SCANNER.scan(noise(before, before) + number)} == {"text"}


@pytest.mark.parametrize("writing", ["zlib", "base64", "hex", "gzip", "xz"])
def test_pixels_are_found_inside_other_encodings(writing: str) -> None:
    stretch = body()[1000:1200].astype("<f4")
    hits = SCANNER.scan(noise(1, 777) + WRITINGS[writing](stretch.tobytes()))
    assert {hit.planted for hit in hits} == {"scan"}
    assert all(" > " in hit.disguise for hit in hits)


@pytest.mark.slow
def test_pixels_as_decimal_numbers_are_found() -> None:
    values = body()[100:300]
    for text in (json.dumps(values.tolist()), "\n".join(map(str, values)), ";".join(f"{v / 700:.3f}" for v in values)):
        assert [hit.planted for hit in SCANNER.scan(text.encode())][:1] == ["scan"]


@pytest.mark.slow
def test_shortest_stretch_is_found_at_every_byte_offset() -> None:
    values = body()[500 : 500 + STRETCH].astype("<f4").tobytes()
    for before in range(0, WINDOW * 4, 3):  # the size of a window in bytes: larger offsets give the same cuts
        assert SCANNER.scan(noise(before, before) + values + noise(1, 99)), before


@pytest.mark.parametrize("text", ["Anna", "20200403", "12345678", "aaaaaaaaaaaaaaaaaa", "deadbeef", "2020-04-03"])
def test_weak_text_is_refused(text: str) -> None:
    with pytest.raises(TooWeak):
        Scanner([Planted("text", (text,))])


@pytest.mark.parametrize(
    "line",
    [
        np.full(500, -1024.0),
        np.linspace(-1000, 40, 500),
        np.repeat([-1000.0, 40.0], 250),
        np.sin(np.linspace(0, 3, 500)),
        body()[:100],
    ],
    ids=["constant", "slope", "edge", "bow", "short"],
)
def test_weak_line_of_pixels_is_refused(line: NDArray) -> None:
    with pytest.raises(TooWeak):
        Scanner([Planted("scan", lines=(line,))])


@pytest.mark.slow
def test_random_bytes_have_no_findings() -> None:
    assert SCANNER.scan(noise(5, 1 << 20)) == []


@pytest.mark.slow
def test_model_weights_have_no_findings() -> None:
    network = build_network(NetworkSettings(architecture="resnet10", widen_factor=0.1), seed=1)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        scans = torch.from_numpy(body(step, 2 * 2 * 8 * 24 * 24)).reshape(2, 2, 8, 24, 24) / 1000
        loss = network(scans, torch.rand(2, 4, generator=generator)).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    flat = torch.cat([tensor.detach().float().flatten() for tensor in network.state_dict().values()]).numpy()
    assert flat.nbytes > 1 << 19
    for kind in ("<f4", "<f2"):
        assert SCANNER.scan(flat.astype(kind).tobytes()) == []


@pytest.mark.slow
def test_counters_and_number_tables_have_no_findings() -> None:
    counting = bytes(range(256)) * 200
    table = "\n".join(f"{k},{k * k},{k % 7}" for k in range(5000)).encode()
    assert SCANNER.scan(counting + table + zlib.compress(table) + b"\0" * 5000) == []


def test_scan_of_another_patient_has_no_findings() -> None:
    assert SCANNER.scan(body(seed=4).astype("<f4").tobytes()) == []
    assert SCANNER.scan(body(seed=3).astype("<f4").tobytes()) != []


def test_decompression_bomb_is_reported_as_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert UNREAD in {hit.planted for hit in SCANNER.scan(zlib.compress(b"\0" * (20 << 20)))}
    monkeypatch.setattr(layers, "MAX_STREAM", 1 << 20)
    assert UNREAD in {hit.planted for hit in SCANNER.scan(bz2.compress(b"\0" * (2 << 20)))}
