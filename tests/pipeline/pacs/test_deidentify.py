"""Tests of de-identification: no identifying data is kept, and all data that the reader needs is kept."""

import hashlib
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread, uid
from pydicom.encaps import encapsulate, get_frame
from pydicom.tag import Tag

from models.refusal import Refusal
from pipeline.imaging.ct_slice import decode_slice, inspect_slice
from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.imaging.vendor_tags import known_kernel
from pipeline.pacs.deidentify import image_file, strip
from pipeline.site.folder import Site, init_site
from tests.helpers.dicom_files import PATIENT_ID, anything_goes, body, ct_slice, mislabel, save, write_series
from tests.helpers.enhanced import enhanced, legacy_converted, save_frames, single_frames
from tests.pipeline.pacs.planted import NAME, holds, plant

SETTINGS = '[site]\nname = "ward"\n[labels]\nfile = "labels.csv"\n'
DAMAGED = {"E_NOT_DICOM", "E_PARSE", "E_TRANSFER_SYNTAX", "E_NO_PATIENT_ID", "E_PATIENT_ID_UNDECODED"}
SYNTAXES = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.RLELossless,
    uid.JPEG2000Lossless,
    uid.JPEGLSLossless,
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return init_site(tmp_path_factory.mktemp("site"), SETTINGS, key=b"k" * 32)


def part10(folder: Path, *, transfer_syntax: uid.UID = uid.ExplicitVRLittleEndian, **attributes: Any) -> bytes:
    """A CT image as a DICOM file, with noise in its pixels."""
    hu = np.random.default_rng(0).integers(-1000, 1000, (16, 12))
    save(ct_slice(hu, position_mm=(0, 0, 1.5), **attributes), folder / "image.dcm", transfer_syntax=transfer_syntax)
    return (folder / "image.dcm").read_bytes()


def stripped(content: bytes, site: Site) -> Dataset:
    return dcmread(BytesIO(strip(content, site)[1]))


def refusal_of(content: bytes, site: Site, **options: Any) -> str:
    with pytest.raises(Refusal) as caught:
        strip(content, site, **options)
    return caught.value.code


def test_only_allowed_elements_are_kept(site: Site, tmp_path: Path) -> None:
    image = stripped(part10(tmp_path, ContrastBolusAgent="Iomeron 350", KVP=120), site)
    assert {element.keyword: element.value for element in image if element.keyword != "PixelData"} == {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": uid.CTImageStorage,
        "SOPInstanceUID": image.file_meta.MediaStorageSOPInstanceUID,
        "StudyDate": "20210304",
        "StudyTime": "101112",
        "Modality": "CT",
        "Manufacturer": "SYNTHETIC",
        "ContrastBolusAgent": "YES",
        "PatientID": site.pseudonym(PATIENT_ID),
        "PatientSex": "F",
        "PatientAge": "063Y",
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "fedthorax allow-list",
        "SliceThickness": 2.0,
        "KVP": 120.0,
        "ConvolutionKernel": "B30F",
        "StudyInstanceUID": image.StudyInstanceUID,
        "SeriesInstanceUID": image.SeriesInstanceUID,
        "ImagePositionPatient": [0.0, 0.0, 1.5],
        "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 16,
        "Columns": 12,
        "PixelSpacing": [1.0, 1.0],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": 0.0,
        "RescaleSlope": 1.0,
    }
    assert image.preamble == b"\0" * 128


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless])
def test_planted_names_are_removed(site: Site, tmp_path: Path, syntax: uid.UID) -> None:
    image = ct_slice(body(8, 64, 64)[3], position_mm=(0, 0, 0))
    with anything_goes():
        assert plant(image) > 40
    save(image, tmp_path / "image.dcm", transfer_syntax=syntax)
    planted = dcmread(tmp_path / "image.dcm")
    planted.file_meta.SourceApplicationEntityTitle = NAME.upper()
    planted.file_meta.PrivateInformationCreatorUID, planted.file_meta.PrivateInformation = "1.2.3", NAME.encode()
    planted.preamble = NAME.encode().ljust(128, b"\0")
    with anything_goes():
        planted.save_as(tmp_path / "image.dcm")
    content = (tmp_path / "image.dcm").read_bytes()
    words = (NAME, "Ptarmigan", "1.2.840.3141", "19570203", "Iomeron", "for ", image.SOPInstanceUID)
    assert {word for word in words if holds(content, word)} == set(words) - {"Iomeron"}
    name, kept = strip(content, site)
    assert [word for word in words if holds(kept, word) or holds(name.encode(), word)] == []
    assert dcmread(BytesIO(kept)).ImageType == ["ORIGINAL", "PRIMARY", "AXIAL", "OTHER"]


@pytest.mark.parametrize(
    ("keyword", "value", "kept"),
    [
        ("Manufacturer", "SIEMENS Healthineers", "SIEMENS"),
        ("Manufacturer", "Qvickstrom", "OTHER"),
        ("ConvolutionKernel", "Bl57d", "BL57D"),
        ("ConvolutionKernel", "QVICKSTROM", "OTHER"),
        ("ImageType", ["DERIVED", "PRIMARY", "MPR THICK"], ["DERIVED", "PRIMARY", "MPR OTHER"]),
        ("Modality", "DOE", "OTHER"),
        ("PatientPosition", "HFS", "HFS"),
        ("PatientPosition", "DOE", None),
        ("ManufacturerModelName", "Somatom", None),
        ("BodyPartExamined", "CHEST", None),
    ],
)
def test_text_values_are_limited_to_closed_lists(
    site: Site, tmp_path: Path, keyword: str, value: str | list[str], kept: str | list[str] | None
) -> None:
    assert stripped(part10(tmp_path, **{keyword: value}), site).get(keyword) == kept


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_reader_gets_the_same_scan(site: Site, tmp_path: Path, syntax: uid.UID) -> None:
    def in_its_byte_order(image: Dataset, index: int) -> None:
        if not syntax.is_little_endian:
            image.PixelData = np.frombuffer(image.PixelData, "<i2").byteswap().tobytes()

    hu = body(24, 64, 64)
    paths = write_series(tmp_path / "source", hu, transfer_syntax=syntax, edit=in_its_byte_order)
    (tmp_path / "stored").mkdir()
    for path in paths:
        name, content = strip(path.read_bytes(), site)
        (tmp_path / "stored" / name).write_bytes(content)
        assert dcmread(BytesIO(content)).file_meta.TransferSyntaxUID == syntax
    (before,), _ = find_series(tmp_path / "source")
    (after,), findings = find_series(tmp_path / "stored")
    assert findings == []
    assert np.array_equal(read_series(before).hu, read_series(after).hu)
    assert np.array_equal(read_series(before).affine, read_series(after).affine)
    kept = ("modality", "age_years", "sex", "acquired")
    assert [getattr(before, field) for field in kept] == [getattr(after, field) for field in kept]
    assert known_kernel(before.kernel) == known_kernel(after.kernel) == ("B30F", "soft")
    assert after.patient_id == site.pseudonym(before.patient_id)


@pytest.mark.parametrize(
    "attributes",
    [
        {"AcquisitionDate": "20200403", "AcquisitionTime": "013000", "TimezoneOffsetFromUTC": "+0000"},
        {"AcquisitionDateTime": "20200403013000.000000+0000"},
        {"AcquisitionDateTime": "202004030130-0730"},
        {"AcquisitionDateTime": "20200403013000", "TimezoneOffsetFromUTC": "-0800"},
    ],
)
def test_scan_keeps_its_time_and_offset(site: Site, tmp_path: Path, attributes: dict[str, str]) -> None:
    content = part10(tmp_path / "source", **attributes)
    (tmp_path / "stored.dcm").write_bytes(strip(content, site)[1])
    ((before,), _), ((after,), _) = find_series(tmp_path / "source"), find_series(tmp_path / "stored.dcm")
    assert before.acquired and before.acquired.tzinfo
    assert after.acquired and (after.acquired, after.acquired.tzinfo) == (before.acquired, before.acquired.tzinfo)


@pytest.mark.parametrize("offset", ["Ptarmigan", "+01:00", "+01000", "UTC"])
def test_malformed_offset_is_not_copied(site: Site, tmp_path: Path, offset: str) -> None:
    image = stripped(part10(tmp_path, TimezoneOffsetFromUTC=offset, AcquisitionDateTime=f"20200403{offset}"), site)
    assert "TimezoneOffsetFromUTC" not in image and "AcquisitionDateTime" not in image


@pytest.mark.parametrize(
    ("age", "born", "kept"),
    [
        ("070Y", "19571001", "070Y"),
        ("63Y", "19571001", "63Y"),
        (None, "19571001", "063Y"),
        ("", "19571001", "063Y"),
        ("63", "19571001", "063Y"),
        ("0063Y", "19571001", "063Y"),
        ("063y", "19571001", "063Y"),
        ("000Y", "19571001", "063Y"),
        ("Ptarmigan", "19571001", "063Y"),
        ("", "20200504", "010M"),
        ("", "19000101", None),
        ("", "Ptarmigan", None),
        ("63", None, None),
    ],
)
def test_age_is_calculated_and_the_birth_date_not_stored(
    site: Site, tmp_path: Path, age: str | None, born: str | None, kept: str | None
) -> None:
    _, content = strip(part10(tmp_path / "source", PatientAge=age, PatientBirthDate=born), site)
    image = dcmread(BytesIO(content))
    assert image.get("PatientAge") == kept
    assert "PatientBirthDate" not in image
    assert not (born and holds(content, born))
    (tmp_path / "stored.dcm").write_bytes(content)
    ((before,), _), ((after,), _) = find_series(tmp_path / "source"), find_series(tmp_path / "stored.dcm")
    assert before.age_years == after.age_years


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_age_is_calculated_whatever_the_encoding(site: Site, tmp_path: Path, syntax: uid.UID) -> None:
    content = part10(tmp_path, PatientAge="", PatientBirthDate="19571001", transfer_syntax=syntax)
    assert stripped(content, site).PatientAge == "063Y"


def test_age_is_calculated_for_a_multi_frame_image(site: Site, tmp_path: Path) -> None:
    image = enhanced(single_frames(write_series(tmp_path / "single", body(slices=3))))
    image.PatientAge, image.PatientBirthDate, image.AcquisitionDateTime = "", "19571001", "20200403013000+0000"
    save_frames(image, tmp_path / "image.dcm")
    kept = stripped((tmp_path / "image.dcm").read_bytes(), site)
    assert (kept.PatientAge, kept.AcquisitionDateTime) == ("062Y", "20200403013000+0000")


@pytest.mark.parametrize("padded", [" 0042", "0042 ", "  0042\0"])
def test_padding_makes_no_other_pseudonym(site: Site, tmp_path: Path, padded: str) -> None:
    content = part10(tmp_path, PatientID=padded)
    assert dcmread(BytesIO(strip(content, site, patient_id="0042")[1])).PatientID == site.pseudonym("0042")


def outcome(path: Path) -> tuple[object, ...]:
    """The reader's result for one file: the slice with its pixels, or the refusal code."""
    try:
        header = inspect_slice(path)
        pixels = hashlib.sha256(decode_slice(header).tobytes()).hexdigest()
        kept = {key: value for key, value in vars(header).items() if key not in ("path", "thickness_mm", "scan")}
        kept["recording"] = header.recording[:-1]  # the last is the kernel, which may become OTHER
        return (*kept.values(), pixels)
    except Refusal as refusal:
        return (refusal.code,)


def test_reader_accepts_and_refuses_the_same_real_images(site: Site, real_data: Path, tmp_path: Path) -> None:
    """Every file of the real data has the same geometry, pixels and flags as before, or the same refusal."""
    compared = []
    for path in sorted(path for path in real_data.rglob("*") if path.is_file()):
        try:
            _, content = strip(path.read_bytes(), site)
        except Refusal as refusal:
            assert refusal.code in DAMAGED
            continue
        (tmp_path / "stored.dcm").write_bytes(content)
        assert outcome(tmp_path / "stored.dcm") == outcome(path), path.name
        compared.append(outcome(path)[0])
    assert len(compared) > 100
    assert {"E_LOCALIZER", "E_NOT_AXIAL", "E_TRANSFER_SYNTAX"} <= set(compared)


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"BurnedInAnnotation": "YES"}, "E_BURNED_IN"),
        ({"BurnedInAnnotation": "yes "}, "E_BURNED_IN"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "E_NOT_AXIAL"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "E_LOCALIZER"),
        ({"SOPClassUID": uid.SecondaryCaptureImageStorage}, "E_NOT_AXIAL"),
        ({"SOPClassUID": "1.2.3.4.5"}, "E_MODALITY_MISMATCH"),
        ({"RescaleType": "Z_EFF"}, "E_RESCALE"),
        ({"Modality": "OT"}, "E_MODALITY_MISMATCH"),
    ],
)
def test_pixels_with_possible_text_are_removed_and_refusal_code_kept(
    site: Site, tmp_path: Path, attributes: dict[str, Any], code: str
) -> None:
    content = part10(tmp_path, **attributes)
    assert outcome(tmp_path / "image.dcm") == (code,)
    image = stripped(content, site)
    (tmp_path / "stored.dcm").write_bytes(strip(content, site)[1])
    assert outcome(tmp_path / "stored.dcm") == (code,)
    if code not in ("E_RESCALE", "E_MODALITY_MISMATCH"):  # only the reader refuses these; their pixels are kept
        assert "PixelData" not in image


def test_sop_class_in_the_file_meta_only_is_used(site: Site, tmp_path: Path) -> None:
    for class_in_the_image in ("", None):
        content = part10(tmp_path, SOPClassUID=class_in_the_image)
        assert len(outcome(tmp_path / "image.dcm")) > 1
        before = outcome(tmp_path / "image.dcm")
        (tmp_path / "stored.dcm").write_bytes(strip(content, site)[1])
        assert outcome(tmp_path / "stored.dcm") == before


def long_value(content: bytes, keyword: str, vr: str, value: bytes) -> bytes:
    """Give an element of a file another VR with a length of four bytes, and this value."""
    tag = Tag(keyword)
    start = content.index(struct.pack("<HH", tag.group, tag.elem))
    (length,) = struct.unpack_from("<H", content, start + 6)
    head = content[start : start + 4] + vr.encode() + struct.pack("<HL", 0, len(value))
    return content[:start] + head + value + content[start + 8 + length :]


@pytest.mark.parametrize(
    "element",
    [
        ("ImageType", "UN", b"ORIGINAL\\PRIMARY\\AXIAL" + b"\\A" * 20_000),
        ("ImageType", "UN", b"ORIGINAL\\PRIMARY\\AXIAL" + b"\\A" * 64 + b"\\LOCALIZER"),
        ("PixelSpacing", "UN", b"1.0" + b" " * 70_000 + b"\\1.0"),
        ("RescaleSlope", "UN", b"1" + b" " * 70_000 + b"\\1"),
    ],
    ids=["words", "hidden word", "spacing", "slope"],
)
def test_value_that_is_too_long_is_refused(site: Site, tmp_path: Path, element: tuple[str, str, bytes]) -> None:
    assert refusal_of(long_value(part10(tmp_path), *element), site) == "E_PARSE"


def test_vendors_words_in_image_type_are_replaced(site: Site, tmp_path: Path) -> None:
    kind = ["ORIGINAL", "PRIMARY", "AXIAL", *(f"CT_SOM{n}" for n in range(20))]
    assert stripped(part10(tmp_path, ImageType=kind), site).ImageType == [*kind[:3], *["OTHER"] * 20]


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("is_signed", [False, True])
def test_overlay_in_unused_bits_is_removed(site: Site, tmp_path: Path, syntax: uid.UID, is_signed: bool) -> None:
    order = "<" if syntax.is_little_endian else ">"
    stored = np.array([[0, 1, 2047, 1029], [5, 0, 7, 1024]], np.int64) - 1024 * is_signed
    layout = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": int(is_signed), "Rows": 2, "Columns": 4}
    part10(tmp_path, transfer_syntax=syntax, **layout)
    image = dcmread(tmp_path / "image.dcm")
    for mark in (0x0000, 0x5000, 0xF000):
        image.PixelData = (stored & 0x0FFF | mark).astype(f"{order}u2").tobytes()
        image.save_as(tmp_path / "image.dcm")
        kept = stripped((tmp_path / "image.dcm").read_bytes(), site).PixelData
        assert (np.frombuffer(kept, f"{order}{'i' if is_signed else 'u'}2").reshape(2, 4) == stored).all()


@pytest.mark.parametrize("syntax", SYNTAXES[:3])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("columns", [5, 6])
def test_bytes_after_the_last_pixel_are_removed(
    site: Site, tmp_path: Path, syntax: uid.UID, bits: int, columns: int
) -> None:
    layout = {"Rows": 25, "Columns": columns, "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    part10(tmp_path, transfer_syntax=syntax, **layout, PixelRepresentation=0)
    image = dcmread(tmp_path / "image.dcm")
    needed = 25 * columns * bits // 8
    padding = needed % 2
    image.PixelData = bytes(n % 250 + 1 for n in range(needed + padding)) + f"{NAME} {NAME}".encode()
    image.save_as(tmp_path / "image.dcm")
    before = outcome(tmp_path / "image.dcm")
    content = strip((tmp_path / "image.dcm").read_bytes(), site)[1]
    kept = dcmread(BytesIO(content)).PixelData
    assert not holds(content, NAME) and len(kept) == needed + padding and kept.count(0) == padding
    (tmp_path / "kept.dcm").write_bytes(content)
    assert outcome(tmp_path / "kept.dcm") == before and len(before) > 1


def test_value_with_room_for_two_images_holds_one_and_is_refused_as_before(site: Site, tmp_path: Path) -> None:
    part10(tmp_path)
    image = dcmread(tmp_path / "image.dcm")
    image.PixelData += (NAME * len(image.PixelData)).encode()
    image.save_as(tmp_path / "image.dcm")
    content = strip((tmp_path / "image.dcm").read_bytes(), site)[1]
    assert not holds(content, NAME)
    (tmp_path / "kept.dcm").write_bytes(content)
    assert outcome(tmp_path / "kept.dcm") == outcome(tmp_path / "image.dcm") == ("E_DECODE",)


def test_native_pixels_in_an_unknown_layout_are_not_copied(site: Site, tmp_path: Path) -> None:
    content = part10(tmp_path, BitsStored=12, HighBit=15)
    assert "PixelData" not in stripped(content, site)
    (tmp_path / "kept.dcm").write_bytes(strip(content, site)[1])
    for name in ("image.dcm", "kept.dcm"):
        with pytest.raises(Refusal, match="E_PIXEL"):
            inspect_slice(tmp_path / name)


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLSLossless])
def test_comments_of_jpeg_streams_are_removed_and_pixels_kept(site: Site, tmp_path: Path, syntax: uid.UID) -> None:
    save(ct_slice(body(8, 64, 64)[3], position_mm=(0, 0, 0)), tmp_path / "image.dcm", transfer_syntax=syntax)
    image = dcmread(tmp_path / "image.dcm")
    frame = get_frame(image.PixelData, 0, number_of_frames=1)
    at = 2 if syntax != uid.JPEG2000Lossless else 4 + int.from_bytes(frame[4:6], "big")  # SIZ comes first
    marker = b"\xff\x64" if syntax == uid.JPEG2000Lossless else b"\xff\xfe"
    note = marker + (2 + len(NAME)).to_bytes(2, "big") + NAME.encode()
    image.PixelData = encapsulate([frame[:at] + note + frame[at:]])
    image.save_as(tmp_path / "noted.dcm")
    content = (tmp_path / "noted.dcm").read_bytes()
    assert holds(content, NAME)
    kept = strip(content, site)[1]
    assert not holds(kept, NAME)
    (tmp_path / "kept.dcm").write_bytes(kept)
    read = [decode_slice(inspect_slice(tmp_path / name)) for name in ("image.dcm", "kept.dcm")]
    assert (np.asarray(read[0]) == np.asarray(read[1])).all()


def test_new_identifiers_are_keyed_valid_and_stable(site: Site, tmp_path: Path) -> None:
    content = part10(tmp_path)
    first, again = stripped(content, site), stripped(content, site)
    other = stripped(content, init_site(tmp_path / "other", SETTINGS))
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert uid.UID(first[keyword].value).is_valid
        assert first[keyword].value == again[keyword].value != other[keyword].value
    original = dcmread(BytesIO(content)).SOPInstanceUID
    assert strip(content, site)[0] == image_file(site, original) != image_file(site, original + "1")


@pytest.mark.parametrize(
    ("patient_id", "charset"), [("Ñandú-7", "ISO_IR 192"), ("Ñandú-7", "ISO_IR 100"), ("山田7", "ISO 2022 IR 87")]
)
def test_patient_id_in_any_character_set_gets_the_pseudonym_of_its_text(
    site: Site, tmp_path: Path, patient_id: str, charset: str
) -> None:
    charsets = ["", charset] if charset.startswith("ISO 2022") else charset
    content = part10(tmp_path, SpecificCharacterSet=charsets, PatientID=patient_id)
    assert stripped(content, site).PatientID == site.pseudonym(patient_id)
    assert refusal_of(content, site, patient_id="another") == "E_PATIENT_DIFFERS"


@pytest.mark.parametrize("keyword", ["PatientID", "IssuerOfPatientID"])
def test_patients_whose_identifiers_cannot_be_decoded_get_no_pseudonym(
    keyword: str, site: Site, tmp_path: Path
) -> None:
    """Otherwise "Ä1" and "Ö1" would be one patient, with the PCR results of both."""
    for value in ("Ä1", "Ö1"):
        content = mislabel(part10(tmp_path, SpecificCharacterSet="ISO_IR 100", **{keyword: value}))
        assert refusal_of(content, site) == refusal_of(content, site, patient_id="\ufffd1") == "E_PATIENT_ID_UNDECODED"


def test_image_without_known_patient_is_refused(tmp_path: Path) -> None:
    site = init_site(tmp_path / "site", SETTINGS.replace("[labels]", 'issuer = "HOSP"\n[labels]'))
    assert refusal_of(part10(tmp_path, PatientID=" "), site) == "E_NO_PATIENT_ID"
    assert refusal_of(part10(tmp_path, IssuerOfPatientID="ELSEWHERE"), site) == "E_ISSUER"
    assert "IssuerOfPatientID" not in stripped(part10(tmp_path, IssuerOfPatientID="HOSP"), site)
    assert stripped(part10(tmp_path), site).PatientID == site.pseudonym(PATIENT_ID)
    assert refusal_of(part10(tmp_path), site, patient_id="CANARY-0043") == "E_PATIENT_DIFFERS"
    strip(part10(tmp_path), site, patient_id=PATIENT_ID)


def test_file_that_cannot_be_deidentified_is_refused(site: Site, tmp_path: Path) -> None:
    content = part10(tmp_path)
    assert refusal_of(b"", site) == refusal_of(content[132:], site) == "E_NOT_DICOM"
    assert refusal_of(content[:200], site) == "E_TRANSFER_SYNTAX"
    assert refusal_of(part10(tmp_path, SOPInstanceUID=""), site) == "E_PARSE"
    assert refusal_of(part10(tmp_path, transfer_syntax=uid.DeflatedExplicitVRLittleEndian), site) == "E_TRANSFER_SYNTAX"


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless])
@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("surplus", [b"", NAME.encode(), NAME.encode() * 9, NAME.encode() + b"\xff\xd9"])
def test_bytes_after_a_compressed_frame_are_removed(
    site: Site, tmp_path: Path, syntax: uid.UID, fragments: int, surplus: bytes
) -> None:
    save(ct_slice(body(8, 64, 64)[3], position_mm=(0, 0, 0)), tmp_path / "image.dcm", transfer_syntax=syntax)
    image = dcmread(tmp_path / "image.dcm")
    frame = get_frame(image.PixelData, 0, number_of_frames=1)
    image.PixelData = encapsulate([frame + surplus], fragments_per_frame=1 if syntax == uid.RLELossless else fragments)
    image.save_as(tmp_path / "noted.dcm")
    _, content = strip((tmp_path / "noted.dcm").read_bytes(), site)
    (tmp_path / "kept.dcm").write_bytes(content)
    assert not holds(content, NAME)
    read, kept = (outcome(tmp_path / name) for name in ("image.dcm", "kept.dcm"))
    is_refused = len(surplus) > 16 and syntax != uid.RLELossless
    assert kept == (("E_TRUNCATED",) if is_refused else read)


def test_pixels_of_a_syntax_that_is_not_read_are_not_copied_and_the_refusal_stays(site: Site, tmp_path: Path) -> None:
    image = ct_slice(body(8, 64, 64)[3], position_mm=(0, 0, 0))
    save(image, tmp_path / "image.dcm", transfer_syntax=uid.RLELossless)
    image = dcmread(tmp_path / "image.dcm")
    image.file_meta.TransferSyntaxUID = uid.UID("1.2.840.10008.1.2.4.53")  # JPEG, process 6
    image.save_as(tmp_path / "image.dcm")
    _, content = strip((tmp_path / "image.dcm").read_bytes(), site)
    (tmp_path / "kept.dcm").write_bytes(content)
    assert "PixelData" not in dcmread(BytesIO(content))
    assert outcome(tmp_path / "kept.dcm") == outcome(tmp_path / "image.dcm") == ("E_TRANSFER_SYNTAX",)


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("seed")
    image = ct_slice(body(8, 64, 64)[3], position_mm=(0, 0, 0))
    with anything_goes():
        plant(image)
    save(image, folder / "image.dcm")
    return (folder / "image.dcm").read_bytes()


@settings(max_examples=400, deadline=2000)
@given(damage=st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=4)), max_size=6))
def test_damaged_file_gives_an_image_or_a_refusal(site: Site, seed: bytes, damage: list[tuple[int, bytes]]) -> None:
    content = bytearray(seed)
    for place, value in damage:
        content[place : place + len(value)] = value
    try:
        _, kept = strip(bytes(content), site)
    except Refusal as refusal:
        assert refusal.code in DAMAGED
    else:
        dcmread(BytesIO(kept))
        assert not holds(kept, "Ptarmigan^")


@pytest.mark.parametrize("make", [legacy_converted, enhanced])
@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.JPEG2000Lossless])
def test_reader_gets_the_same_scan_from_a_multi_frame_image(
    site: Site, tmp_path: Path, make: Any, syntax: uid.UID
) -> None:
    image = make(single_frames(write_series(tmp_path / "single", body(24, 64, 64))))
    for own in image.PerFrameFunctionalGroupsSequence:
        own.FrameContentSequence[0].FrameComments = NAME
        with anything_goes():
            plant(own)
    image.PatientName = image.ImageComments = NAME
    save_frames(image, tmp_path / "source" / "1.dcm", syntax=syntax)
    content = (tmp_path / "source" / "1.dcm").read_bytes()
    assert holds(content, NAME)
    name, kept = strip(content, site)
    assert not holds(kept, NAME) and not holds(kept, "Ptarmigan")
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored" / name).write_bytes(kept)
    ((before,), _), ((after,), _) = (find_series(tmp_path / folder) for folder in ("source", "stored"))
    assert np.array_equal(read_series(before).hu, read_series(after).hu)
    assert np.array_equal(read_series(before).affine, read_series(after).affine)
    kept_fields = ("modality", "age_years", "sex", "acquired", "slices")
    assert [getattr(before, field) for field in kept_fields] == [getattr(after, field) for field in kept_fields]
    assert known_kernel(after.kernel) == ("B30F", "soft")


@pytest.mark.parametrize("count", [1, 3])
def test_bytes_after_the_last_frame_are_removed(site: Site, tmp_path: Path, count: int) -> None:
    image = enhanced(single_frames(write_series(tmp_path / "single", body(count))))
    pixels = image.PixelData
    image.PixelData = pixels + NAME.encode()
    save_frames(image, tmp_path / "image.dcm")
    content = strip((tmp_path / "image.dcm").read_bytes(), site)[1]
    assert not holds(content, NAME) and dcmread(BytesIO(content)).PixelData == pixels


@pytest.mark.parametrize(("kind", "is_kept"), [(None, True), (["ORIGINAL", "PRIMARY", "OTHER"], True), ("MIP", False)])
def test_pixels_of_an_unusual_image_type_are_kept_if_the_reader_accepts_it(
    site: Site, tmp_path: Path, kind: Any, is_kept: bool
) -> None:
    assert ("PixelData" in stripped(part10(tmp_path, ImageType=kind), site)) == is_kept
    assert "PixelData" not in stripped(part10(tmp_path, ImageType=None, ImageOrientationPatient=None), site)
