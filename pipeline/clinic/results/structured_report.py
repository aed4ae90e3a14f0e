"""The structured report of one answer: a Measurement Report (DICOM PS3.16, TID 1500) made with highdicom.

It has one group (TID 1501) for each probability, one for each level that a reader set, one for each lung and one for
both, and one for the scan's quality. If there is a segmentation, the groups of both lungs and of each density refer to
their segments (TID 1411).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from typing import Any

from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.seg import Segmentation
from highdicom.sr.value_types import ContentSequence
from pydicom import Dataset
from pydicom.sr.codedict import codes as standard
from pydicom.sr.coding import Code
from pydicom.valuerep import DT

from pipeline.clinic.records import Answer, Decision
from pipeline.clinic.results import identity, sr_codes
from pipeline.clinic.results.source import Source
from pipeline.clinic.review import decision_text, reviewed_lungs
from pipeline.scoring.verdict import SYNTHETIC, evidence_texts

SERIES_NUMBER, VERIFIED_NUMBER = 901, 911
DESCRIPTION = "fedthorax UNVERIFIED probabilities, research use only"
VERIFIED_DESCRIPTION = "fedthorax verified result, research use only"
UNVERIFIED = "Created by software; not verified by a person."
UNCERTAIN = "Uncertain: the 95 % band of the calibration crosses a threshold."
CORRECTED = "The reader set another level: see the group of the level."
CORRECTED_SHARES = "The reader corrected shares of this lung."
CORRECTED_MASK = "Computed from a mask of the lungs that the reader corrected by hand."
OF_THE_SEGMENT = "Volume of the segment. The share of the lungs is larger: it leaves out the lungs' outermost layer."
MEANINGS = {
    "severe": "Valid only for patients with a positive PCR.",
    "pcr_positive": "Does not replace a PCR.",
}
_CONTAINS = sr.RelationshipTypeValues.CONTAINS
_PROPERTY = sr.RelationshipTypeValues.HAS_PROPERTIES

Group = sr.MeasurementsAndQualitativeEvaluations | sr.VolumetricROIMeasurementsAndQualitativeEvaluations


@dataclass(frozen=True)
class Verification:
    """How a person's decision is reported. `organization`: theirs. `predecessor`: header of the earlier report."""

    organization: str
    predecessor: Dataset | None


def structured_report(
    answer: Answer, source: Source, verification: Verification | None = None, segmentation: Segmentation | None = None
) -> Dataset:
    """Create a Comprehensive 3D SR in the source's study that refers to its images, and to `segmentation` if given.

    Without `verification` it is unverified and preliminary; with it, it says what the answer's decision accepts, and
    names the report that it replaces.
    """
    decision = answer.decision if verification else None
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=device_observer(),
            observer_person_context=person_observer(decision) if decision else None,
        ),
        procedure_reported=sr_codes.CT_CHEST,
        imaging_measurements=_groups(answer, segmentation),
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(
            sr.CodedConcept.from_code(sr_codes.ENGLISH)
        ),
    )
    report[0].ContentSequence.extend(_comments(_caveats(answer)))
    made: Dataset = sr.Comprehensive3DSR(
        evidence=[*(_evidence(source, *image) for image in source.images), *([segmentation] if segmentation else [])],
        content=report[0],
        is_complete=True,
        coding_schemes=[CodingSchemeIdentificationItem(sr_codes.SCHEME, name=sr_codes.SCHEME_NAME)],
        **_status(decision, verification),
        **identity.series(
            answer,
            "report",
            VERIFIED_NUMBER if decision else SERIES_NUMBER,
            VERIFIED_DESCRIPTION if decision else DESCRIPTION,
        ),
    )
    identity.name_algorithm(made, answer)
    identity.sign(made, answer)
    for observer in made.get("VerifyingObserverSequence", []):
        observer.VerificationDateTime = DT(identity.made_at(answer))
    return made


def _status(decision: Decision | None, verification: Verification | None) -> dict[str, Any]:
    """Return highdicom's arguments for the status of the document (PS3.3, C.17.2)."""
    if decision is None or verification is None:
        return {"is_final": False, "is_verified": False}
    earlier = verification.predecessor
    return {
        "is_final": True,
        "is_verified": True,
        "verifying_observer_name": decision.person,
        "verifying_organization": verification.organization,
        "previous_versions": [earlier] if earlier else None,
    }


def _evidence(source: Source, sop_class: str, instance: str) -> Dataset:
    image = Dataset()
    image.update(source.header)
    image.SOPClassUID, image.SOPInstanceUID = sop_class, instance
    return image


def device_observer() -> sr.ObserverContext:
    release = version(identity.MAKER)
    attributes = sr.DeviceObserverIdentifyingAttributes(
        uid=identity.uid("device", release),
        name=identity.MAKER,
        manufacturer_name=identity.MAKER,
        model_name=f"{identity.MAKER} {release}",
    )
    return sr.ObserverContext(observer_type=standard.DCM.Device, observer_identifying_attributes=attributes)


def person_observer(decision: Decision) -> sr.ObserverContext:
    attributes = sr.PersonObserverIdentifyingAttributes(name=decision.person)
    return sr.ObserverContext(observer_type=standard.DCM.Person, observer_identifying_attributes=attributes)


def _caveats(answer: Answer) -> list[str]:
    synthetic = [SYNTHETIC] if answer.score["trained_on_synthetic_data"] else []
    none = [f"{label}: {why}" for label, why in (answer.score.get("no_number") or {}).items()]
    return [answer.score["notice"], decision_text(answer) or UNVERIFIED, *synthetic, *none]


def _groups(answer: Answer, segmentation: Segmentation | None) -> list[Group]:
    score = answer.score
    groups = [_probability(answer, label) for label in sr_codes.PROBABILITIES if label in score["probability"]]
    corrected = answer.decision.correction.levels if answer.decision else {}
    groups += [_corrected_level(answer, label, level) for label, level in corrected.items()]
    regions = (reviewed_lungs(answer) or {}).get("regions", {})
    groups += [_lungs(answer, side, regions[side], segmentation) for side in sr_codes.SIDES if side in regions]
    if segmentation and "both" in regions and not (answer.decision and answer.decision.correction.shares):
        whole = regions["both"]["whole"]
        groups += [_density(answer, density, segmentation) for density in sr_codes.SEGMENTS if whole[density]]
    return [*groups, _quality(answer)]


def _corrected_level(answer: Answer, label: str, level: str) -> Group:
    """Create the group of a level that a person set: no algorithm is its source."""
    group = _group(
        answer,
        f"{label}, level set by the reader",
        qualitative_evaluations=[sr.QualitativeEvaluation(sr_codes.LEVEL, sr_codes.LEVELS[level])],
        finding_sites=[sr.FindingSite(sr_codes.LUNG)],
    )
    said = (answer.score.get("level") or {}).get(label) or "no level"
    group[0].ContentSequence.extend(_comments([MEANINGS[label], f"The model said: {said}."]))
    return group


def _probability(answer: Answer, label: str) -> Group:
    score = answer.score
    band = (score.get("interval") or {}).get(label)
    ends = [_number(name, end, sr_codes.NO_UNITS) for name, end in zip(sr_codes.BAND, band or (), strict=bool(band))]
    points = score["operating_points"].get(label, {})
    is_corrected = answer.decision is not None and label in answer.decision.correction.levels
    named = "" if is_corrected else (score.get("level") or {}).get(label) or ""
    level = sr_codes.LEVELS.get(named)
    group = _group(
        answer,
        label,
        measurements=[
            _measurement(sr_codes.PROBABILITIES[label], score["probability"][label], sr_codes.NO_UNITS, ends),
            *[
                _measurement(sr_codes.THRESHOLDS[name], at["threshold"], sr_codes.NO_UNITS)
                for name, at in points.items()
            ],
        ],
        qualitative_evaluations=[sr.QualitativeEvaluation(sr_codes.LEVEL, level)] if level else None,
        finding_sites=[sr.FindingSite(sr_codes.LUNG)],
        algorithm_id=_algorithm(answer),
    )
    unclear = [UNCERTAIN] if named == "uncertain" else [CORRECTED] if is_corrected else []
    evidence = evidence_texts(score, label)
    group[0].ContentSequence.extend(_comments([MEANINGS[label], *unclear, *evidence, *_caveats(answer)]))
    return group


def _algorithm(answer: Answer) -> sr.AlgorithmIdentification:
    """Identify the model (TID 4019)."""
    model = answer.score["model"]
    return sr.AlgorithmIdentification(
        name=answer.model_name,
        version=f"SHA-256 {answer.model_sha256}",
        manufacturer=identity.MAKER,
        family=sr_codes.ARTIFICIAL_INTELLIGENCE,
        parameters=[
            f"software: {identity.MAKER} {version(identity.MAKER)}",
            f"study: {model['study']}",
            f"rounds of training: {model['rounds']}",
            f"hospitals: {model['sites']}",
            f"trained on: {'synthetic data only' if answer.score['trained_on_synthetic_data'] else 'patients'}",
            f"signature: {model['signature']}",
        ],
    )


def _density(answer: Answer, density: str, segmentation: Segmentation) -> Group:
    """Create the group of the segment of a density: the volume of its voxels."""
    name = sr_codes.SEGMENTS[density]
    segment = _segment(segmentation, name)
    numbers = [int(segment[0].ReferencedSOPSequence[0].ReferencedSegmentNumber)]
    voxels = segmentation.get_volume(segment_numbers=numbers, allow_missing_positions=True)
    ml = float(voxels.array.sum() * prod(voxels.spacing) / 1000)
    group = _group(
        answer,
        name.lower(),
        segment=segment,
        measurements=[_measurement(sr_codes.VOLUME, round(ml, 2), sr_codes.MILLILITRE)],
        finding_sites=[sr.FindingSite(sr_codes.LUNG)],
    )
    group[0].ContentSequence.extend(_comments([OF_THE_SEGMENT]))
    return group


def _segment(segmentation: Segmentation, name: str) -> sr.ReferencedSegment:
    """Return the reference to a segment by its label."""
    (number,) = (each.SegmentNumber for each in segmentation.SegmentSequence if each.SegmentLabel == name)
    (series,) = segmentation.ReferencedSeriesSequence
    return sr.ReferencedSegment(
        sop_class_uid=segmentation.SOPClassUID,
        sop_instance_uid=segmentation.SOPInstanceUID,
        segment_number=number,
        source_series=sr.SourceSeriesForSegmentation(series.SeriesInstanceUID),
    )


def _lungs(answer: Answer, side: str, parts: dict[str, dict[str, Any]], segmentation: Segmentation | None) -> Group:
    laterality = sr_codes.SIDES[side]
    measurements = []
    for part, region in parts.items():
        site = [sr.FindingSite(sr_codes.PARTS[part], laterality)]
        measurements.append(_measurement(sr_codes.VOLUME, region["ml"], sr_codes.MILLILITRE, sites=site))
        measurements += [
            _measurement(name, round(100 * region[share], 2), sr_codes.PERCENT, sites=site)
            for share, name in sr_codes.SHARES.items()
            if region[share] is not None
        ]
    group = _group(
        answer,
        f"lungs, {side}",
        segment=_segment(segmentation, sr_codes.LUNGS_SEGMENT) if segmentation and side == "both" else None,
        measurements=measurements,
        finding_sites=[sr.FindingSite(sr_codes.LUNG, laterality)],
    )
    bands = answer.score["lungs"]["bands_hu"]
    texts = [f"{name}: {low:.0f} to {high:.0f} HU, whatever the cause" for name, (low, high) in bands.items()]
    shares = answer.decision.correction.shares if answer.decision else {}
    corrected = [CORRECTED_SHARES] if side in shares or (shares and side == "both") else []
    if answer.decision and answer.decision.correction.mask:
        corrected = [CORRECTED_MASK]
    group[0].ContentSequence.extend(_comments([*corrected, *(text.replace("_", " ") for text in texts)]))
    return group


def _quality(answer: Answer) -> Group:
    familiarity = answer.score.get("familiarity")
    measurements = []
    if familiarity:
        limit = [_number(sr_codes.DISTANCE_LIMIT, familiarity["limit"], sr_codes.NO_UNITS)]
        measurements.append(_measurement(sr_codes.DISTANCE, familiarity["distance"], sr_codes.NO_UNITS, limit))
    group = _group(answer, "quality", measurements=measurements)
    flags = [f"{check['code']}: {check['says']}" for check in answer.score["quality"] if check["code"]]
    remarks = _texts(sr_codes.QUALITY, flags or ["no check found a problem"])
    group[0].ContentSequence.extend(remarks)
    return group


def _group(answer: Answer, name: str, segment: sr.ReferencedSegment | None = None, **content: Any) -> Group:
    tracking = sr.TrackingIdentifier(uid=identity.uid(answer.id, name), identifier=name)  # the same after a correction
    if segment:
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(tracking, referenced_segment=segment, **content)
    return sr.MeasurementsAndQualitativeEvaluations(tracking_identifier=tracking, **content)


def _measurement(
    name: Code, value: float, unit: Code, properties: Iterable[Dataset] = (), sites: list[sr.FindingSite] | None = None
) -> sr.Measurement:
    """Create a measurement (TID 300); `properties`: further values that belong to it."""
    measurement = sr.Measurement(name=name, value=value, unit=unit, finding_sites=sites)
    content = [*measurement[0].get("ContentSequence", []), *properties]
    if content:
        measurement[0].ContentSequence = ContentSequence(content)
    return measurement


def _number(name: Code, value: float, unit: Code) -> Dataset:
    return sr.NumContentItem(name=name, value=value, unit=unit, relationship_type=_PROPERTY)


def _comments(texts: Iterable[str]) -> list[Dataset]:
    return _texts(sr_codes.COMMENT, texts)


def _texts(name: Code, texts: Iterable[str]) -> list[Dataset]:
    return [sr.TextContentItem(name=name, value=text, relationship_type=_CONTAINS) for text in texts]
