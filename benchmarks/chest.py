"""A synthetic chest CT of the size that hospitals store, 300 slices of 512 x 512, in any transfer syntax."""

from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import gdcm
import numpy as np
from pydicom import dcmread, uid
from pydicom.encaps import encapsulate
from scipy import ndimage

from pipeline.phantom.anatomy import Build, Field, Grid, make_thorax
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.phantom.patients import draw_patient
from pipeline.phantom.scans import acquire, write_series

GRID = Grid((300, 512, 512), (1.0, 0.7, 0.7))
SYNTAXES = {
    "uncompressed": uid.ExplicitVRLittleEndian,
    "RLE": uid.RLELossless,
    "JPEG lossless": uid.JPEGLosslessSV1,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
    "HTJ2K": uid.HTJ2KLossless,
}


def can_write(syntax: uid.UID) -> bool:
    """Whether an encoder is installed. HTJ2K needs imagecodecs, which nothing else here uses."""
    return syntax != uid.HTJ2KLossless or find_spec("imagecodecs") is not None


@cache
def _chest_hu() -> Field:
    """Make a small phantom, enlarge it, and add the blur and noise of a scanner."""
    rng = np.random.default_rng(1)
    small = Grid((100, 128, 128), (3.0, 2.8, 2.8))
    thorax = make_thorax(small, Build.draw(rng, female=True), rng)
    hu = ndimage.zoom(thorax.hu, (3, 4, 4), order=1, grid_mode=True, mode="nearest")
    return acquire(hu, replace(HOSPITALS[0].scanner, grid=GRID, blur_mm=0.5), rng)


def write_chest(folder: Path, syntax: uid.UID, *, number: int = 1, slices: int = GRID.shape[0]) -> Path:
    """Write the lowest `slices` of the chest as patient `number`; return the folder."""
    encode = {uid.JPEGLosslessSV1: _to_jpeg_lossless, uid.HTJ2KLossless: _to_htj2k}.get(syntax)
    written = uid.ExplicitVRLittleEndian if encode else syntax  # pydicom cannot write all of them
    grid = replace(GRID, shape=(slices, *GRID.shape[1:]))
    scanner = replace(HOSPITALS[0].scanner, grid=grid, transfer_syntax=written)
    rng = np.random.default_rng(number)
    patient = draw_patient(f"SYNTHETIC-{number}", f"SYNTHETIC^{number}", HOSPITALS[0].mix, rng)
    for path in write_series(_chest_hu()[:slices], scanner, patient, folder):
        if encode:
            encode(path)
    return folder


def copy_chest(folder: Path, copy: Path, number: int) -> None:
    """Copy the series as that of patient `number`."""
    copy.mkdir(parents=True)
    for path in folder.rglob("*.dcm"):
        ds = dcmread(path)
        ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = (
            f"SYNTHETIC-{number}",
            f"2.25.{number}",
            f"2.25.9{number}",
        )
        ds.save_as(copy / path.name)


def _to_htj2k(path: Path) -> None:
    import imagecodecs

    ds = dcmread(path)
    ds.PixelData = encapsulate([bytes(imagecodecs.htj2k_encode(ds.pixel_array, reversible=True))])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = uid.HTJ2KLossless
    ds.save_as(path)


def _to_jpeg_lossless(path: Path) -> None:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
