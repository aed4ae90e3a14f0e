"""Write test names into all places of a DICOM image that can hold text, and search for them."""

from pydicom import Dataset, Sequence

NAME = "Canarysson"
STRANGER = "Ptarmigan^Synthetic"  # not used in attributes meant for names


def holds(content: bytes, name: str) -> bool:
    """Whether the name occurs, in upper or lower case, in UTF-8 or UTF-16."""
    text = content.lower()
    return any(name.lower().encode(encoding) in text for encoding in ("utf-8", "utf-16-le", "utf-16-be"))


def plant(image: Dataset) -> int:
    """Write the patient's name, and another name, into all suitable elements; return how many elements were added."""
    before = len(list(image.iterall()))
    item = Dataset()
    item.ScheduledProcedureStepDescription = item.RequestedProcedureDescription = NAME
    item.ReferencedSOPInstanceUID, item.PatientName = "1.2.840.3141", STRANGER
    image.RequestAttributesSequence = Sequence([item, item])
    image.OriginalAttributesSequence = Sequence([item])
    image["OriginalAttributesSequence"].is_undefined_length = True
    for keyword in ("PatientName", "OtherPatientNames", "ReferringPhysicianName", "OperatorsName"):
        setattr(image, keyword, f"{NAME}^Eve")
    for keyword in ("StudyDescription", "SeriesDescription", "ProtocolName", "ImageComments", "PatientComments"):
        setattr(image, keyword, f"seen by {NAME}, {STRANGER}")
    for keyword in ("AccessionNumber", "StudyID", "PatientID", "OtherPatientIDs", "DeviceSerialNumber", "StationName"):
        setattr(image, keyword, NAME)
    image.PatientAddress = image.InstitutionName = NAME
    image.PatientBirthDate, image.SpecificCharacterSet = "19570203", "ISO_IR 192"
    # In elements that are otherwise kept:
    image.Manufacturer, image.ConvolutionKernel, image.BodyPartExamined = f"by {NAME}", "B30^" + STRANGER, NAME.upper()
    image.ManufacturerModelName, image.ImageType = STRANGER, ["ORIGINAL", "PRIMARY", "AXIAL", f"OF_{NAME.upper()}"]
    image.RescaleType, image.PatientPosition = f"HU {NAME}", STRANGER
    image.ContrastBolusAgent, image.PatientSex = f"for {NAME}", NAME
    image.add_new("KVP", "LO", STRANGER)
    image.PatientAge, image.AcquisitionDate, image.AcquisitionTime = NAME, STRANGER, NAME
    private = image.private_block(0x0029, NAME, create=True)
    private.add_new(0x01, "LO", NAME)
    private.add_new(0x02, "UT", STRANGER)
    private.add_new(0x03, "SQ", Sequence([item]))
    private.add_new(0x04, "OB", NAME.encode("utf-16-le"))
    image.add_new(0x60000022, "LO", NAME)  # overlay
    image.add_new(0x60003000, "OW", NAME.encode().ljust(32, b"\0"))
    image.add_new(0x50000030, "SH", NAME)  # curve
    image.add_new(0xFFFCFFFC, "OB", NAME.encode())  # after the pixels
    return len(list(image.iterall())) - before
