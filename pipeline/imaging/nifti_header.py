"""Checks the header of a NIfTI or MetaImage file, and that all of its voxels are there, before SimpleITK reads it.

SimpleITK does not check enough. Version 2.5 reads a truncated NIfTI file and a MetaImage with damaged compressed voxels
without an error. It turns NaN in a NIfTI file into 0 HU, which is tissue. A MetaImage can name any file on the disk as
its voxels. A file without an orientation gets a default one.
"""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.refusal import Refusal
from pipeline.imaging import reasons
from pipeline.imaging.archive import MAX_BYTES, MAX_RATIO
from pipeline.imaging.volume import MAX_VOXELS

_CHUNK_BYTES = 2**20
_MAX_EXTRA_BYTES = 2**20  # of extensions between header and voxels, and of data after the voxels
_MAX_META_HEADER_BYTES = 2**16
_MOST_APART_MM = 0.5  # of one corner by two descriptions of the axes, which are rounded to float32
# Numpy names of the types that hold one real number: nifti1.h, DT_*; MetaIO, MET_*.
_NIFTI_TYPES = {2: "u1", 256: "i1", 4: "i2", 512: "u2", 8: "i4", 768: "u4", 16: "f4", 64: "f8"}
_META_TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2"},
    **{"MET_INT": "i4", "MET_UINT": "u4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
# Alternative field names of MetaIO.
_META_MATRIX = {"TransformMatrix", "Rotation", "Orientation"}
_META_ORIGIN = {"Offset", "Position", "Origin"}


@dataclass(frozen=True)
class Stored:
    """How the voxels are stored. `before`: bytes before the voxels. `size`: columns, rows, slices, as stored."""

    path: Path
    before: int
    size: tuple[int, ...]
    kind: "np.dtype[Any]"
    packing: Literal["", "gzip", "zlib"]

    @property
    def voxel_bytes(self) -> int:
        return math.prod(self.size) * self.kind.itemsize


def inspect(path: Path, most_ratio: int = MAX_RATIO) -> Stored:
    """Check a volume file without loading it into memory.

    `most_ratio`: bytes of voxels for each byte of a compressed file.
    Raises `Refusal`: E_VOLUME_FILE, E_NOT_ONE_VOLUME, E_VOLUME_ELSEWHERE, E_DIMENSIONS, E_ARCHIVE_RATIO, E_TRUNCATED,
    E_DECODE, E_GEOMETRY; OSError.
    """
    stored = _inspect_meta(path) if is_meta(path) else _inspect_nifti(path)
    _check_whole(stored, most_ratio)
    return stored


def is_meta(path: Path) -> bool:
    return path.suffix.lower() in (".mha", ".mhd")


def _inspect_nifti(path: Path) -> Stored:
    """Check the header of a NIfTI-1 file; the offsets are those of nifti1.h."""
    packing: Literal["", "gzip"] = "gzip" if path.suffix.lower() == ".gz" else ""
    try:
        with gzip.open(path) if packing else path.open("rb") as stream:
            header = stream.read(348)
    except (EOFError, zlib.error) as error:
        raise Refusal(reasons.VOLUME_FILE, private=str(error)) from None
    if header[344:] != b"n+1\0":
        raise Refusal(reasons.VOLUME_FILE, private="not a NIfTI-1 file")
    order = "<" if header.startswith(struct.pack("<i", 348)) else ">"
    axes, *sizes = struct.unpack_from(f"{order}8h", header, 40)
    (kind,) = struct.unpack_from(f"{order}h", header, 70)
    (before,) = struct.unpack_from(f"{order}f", header, 108)
    if kind not in _NIFTI_TYPES or not 3 <= axes <= 7 or any(size != 1 for size in sizes[3:axes]):
        raise Refusal(reasons.NOT_ONE_VOLUME)
    if min(sizes[:3]) < 1 or not 352 <= before <= _MAX_EXTRA_BYTES:  # NaN compares false
        raise Refusal(reasons.VOLUME_FILE, private="impossible NIfTI header")
    by_quaternion, by_matrix = struct.unpack_from(f"{order}2h", header, 252)
    numbers = struct.unpack_from(f"{order}3f", header, 80)
    numbers += struct.unpack_from(f"{order}6f", header, 256) if by_quaternion else ()
    numbers += struct.unpack_from(f"{order}12f", header, 280) if by_matrix else ()
    if not (by_quaternion or by_matrix) or not np.isfinite(numbers).all():
        raise Refusal(reasons.GEOMETRY)
    return Stored(path, int(before), tuple(sizes[:3]), np.dtype(order + _NIFTI_TYPES[kind]), packing)


def require_one_geometry(path: Path) -> None:
    """Check that a NIfTI-1 file places its voxels in one way: programs read its qform, its sform or its pixdim.

    A file that was registered often has a new sform beside the qform of the scanner. A mask of it would then lie beside
    it in one program, and on it in another. `path`: a file that `inspect` accepted. Raises `Refusal` E_GEOMETRY.
    """
    from nibabel.nifti1 import Nifti1Header  # imported here because it is large, and most scans are DICOM

    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        content = stream.read(348)
    try:
        header = Nifti1Header(content, check=False)
        by_quaternion, by_matrix = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
        size, steps_mm = np.array(header["dim"][1:4], float), np.array(header["pixdim"][1:4], float)
    except Exception as error:  # nibabel raises many kinds of exceptions
        raise Refusal(reasons.GEOMETRY, private=str(error)) from None
    if by_matrix is None:
        return
    if (np.abs(np.linalg.norm(by_matrix[:3, :3], axis=0) - steps_mm) * size > _MOST_APART_MM).any():
        raise Refusal(reasons.GEOMETRY, private="pixdim and sform differ")
    corners = np.array([[*corner, 1.0] for corner in np.ndindex(2, 2, 2)]) * [*(size - 1), 1.0]
    if by_quaternion is not None:
        apart_mm = np.linalg.norm(corners @ (by_matrix - by_quaternion).T, axis=1)
        if apart_mm.max() > _MOST_APART_MM:
            raise Refusal(reasons.GEOMETRY, private="qform and sform differ")


def _inspect_meta(path: Path) -> Stored:
    """Check the header of a MetaImage."""
    header, end = read_meta_header(path)
    if header.get("NDims") != "3" or header.get("ElementNumberOfChannels", "1") != "1":
        raise Refusal(reasons.NOT_ONE_VOLUME)
    if "ElementSpacing" not in header or not header.keys() & _META_MATRIX or not header.keys() & _META_ORIGIN:
        raise Refusal(reasons.GEOMETRY)  # MetaIO would use defaults for missing fields
    for field in header.keys() & {"ElementSpacing", *_META_MATRIX, *_META_ORIGIN}:
        _require_numbers(header[field])  # it would read "nan", or "0,7", as 0
    sizes = header.get("DimSize", "").split()
    are_sizes = len(sizes) == 3 and all(re.fullmatch("[1-9][0-9]{0,8}", size) for size in sizes)
    voxels = meta_voxel_file(path, header)
    before = end if voxels == path else 0
    packed = {"True": True, "False": False}.get(header.get("CompressedData", "False"))
    # With a wrong or missing size, MetaIO decompresses only part of the voxels, without an error.
    is_measured = header.get("CompressedDataSize") == str(voxels.stat().st_size - before)
    is_binary = header.get("BinaryData") == "True" and header.get("ElementType") in _META_TYPES
    if not are_sizes or not is_binary or packed is None or (packed and not is_measured):
        raise Refusal(reasons.VOLUME_FILE, private="impossible MetaImage header")
    return Stored(
        path=voxels,
        before=before,
        size=tuple(map(int, sizes)),
        kind=np.dtype(_META_TYPES[header["ElementType"]]),
        packing="zlib" if packed else "",
    )


def _require_numbers(value: str) -> None:
    """Check that a field of a MetaImage holds finite numbers, separated by spaces. Raises `Refusal` E_GEOMETRY."""
    try:
        numbers = [float(number) for number in value.split()]
    except ValueError:
        numbers = []
    if not numbers or not np.isfinite(numbers).all():
        raise Refusal(reasons.GEOMETRY, private="a field is no list of numbers")


def read_meta_header(path: Path) -> tuple[dict[str, str], int]:
    """Return the fields of a MetaImage header, and the offset of its end.

    Raises `Refusal`: E_VOLUME_FILE.
    """
    with path.open("rb") as file:
        start = file.read(_MAX_META_HEADER_BYTES)
    fields: dict[str, str] = {}
    end = 0
    while "ElementDataFile" not in fields:
        line, newline, _ = start[end:].partition(b"\n")
        key, equals, value = (part.strip() for part in line.decode("latin-1").partition("="))
        if not equals or key in fields:  # with two values, SimpleITK could use either
            raise Refusal(reasons.VOLUME_FILE, private="not a MetaImage header")
        fields[key] = value
        end += len(line) + len(newline)
    return fields, end


def meta_voxel_file(path: Path, header: dict[str, str]) -> Path:
    """Return the file with the voxels of a MetaImage: the file itself or one in the same folder.

    MetaIO also accepts a list of files, a pattern with %, and any path; these are refused.
    Raises `Refusal`: E_VOLUME_ELSEWHERE.
    """
    name = header["ElementDataFile"]
    if name == "LOCAL":
        return path
    if not name or name.startswith((".", "LIST")) or set(name) & set("%/\\\0"):
        raise Refusal(reasons.VOLUME_ELSEWHERE)
    voxels = path.with_name(name)
    if voxels.is_symlink() or not voxels.is_file():
        raise Refusal(reasons.VOLUME_ELSEWHERE)
    return voxels


def _check_whole(stored: Stored, most_ratio: int) -> None:
    """Refuse a file that is too large for memory, shorter than its header says, or damaged."""
    columns, rows, slices = stored.size
    if math.prod(stored.size) > MAX_VOXELS:
        raise Refusal(reasons.DIMENSIONS, rows=rows, columns=columns, slices=slices)
    there = stored.path.stat().st_size
    if stored.packing and stored.voxel_bytes > most_ratio * there:
        raise Refusal(reasons.ARCHIVE_RATIO, ratio=most_ratio, gigabytes=MAX_BYTES >> 30)
    try:
        is_plain = not stored.packing and stored.kind.kind != "f"
        count = there - stored.before if is_plain else _read_through(stored)
    except EOFError:
        count = 0
    except (gzip.BadGzipFile, zlib.error) as error:  # includes wrong checksums
        raise Refusal(reasons.DECODE, private=str(error)) from None
    if count < stored.voxel_bytes:
        raise Refusal(reasons.TRUNCATED)


def _read_through(stored: Stored) -> int:
    """Read and check all bytes after the header, without keeping them, and return their number.

    Raises `Refusal`: E_NOT_A_NUMBER, E_VOLUME_FILE; EOFError, BadGzipFile or zlib.error if they are damaged.
    """
    count = 0
    for chunk in _inflate(stored) if stored.packing == "zlib" else read_bytes(stored, _CHUNK_BYTES):
        if stored.kind.kind == "f" and stored.packing != "zlib":  # other voxels are checked after reading
            here = max(0, min(len(chunk), stored.voxel_bytes - count)) // stored.kind.itemsize
            if not np.isfinite(np.frombuffer(chunk, stored.kind, here)).all():
                raise Refusal(reasons.NOT_A_NUMBER)
        count += len(chunk)
        if count > stored.voxel_bytes + _MAX_EXTRA_BYTES:
            raise Refusal(reasons.VOLUME_FILE, private="the file is longer than its header says")
    return count


def read_bytes(stored: Stored, size: int) -> Iterator[bytes]:
    """Yield the bytes after the header of a file that is not packed by zlib, `size` at a time."""
    with gzip.open(stored.path) if stored.packing == "gzip" else stored.path.open("rb") as stream:
        stream.read(stored.before)
        while chunk := stream.read(size):
            yield chunk


def _inflate(stored: Stored) -> Iterator[bytes]:
    unpacker = zlib.decompressobj()
    with stored.path.open("rb") as file:
        file.seek(stored.before)
        while not unpacker.eof:
            packed = unpacker.unconsumed_tail or file.read(_CHUNK_BYTES)
            if not packed:
                raise EOFError
            yield unpacker.decompress(packed, _CHUNK_BYTES)
