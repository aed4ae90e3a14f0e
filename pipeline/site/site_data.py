"""Reads a site's series, PCR results and outcomes, and replaces identifiers with pseudonyms."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from models.refusal import Reason, Refusal
from pipeline.imaging import reasons as imaging_reasons
from pipeline.imaging.dicom_header import is_decoded
from pipeline.imaging.discovery import Series, find_series
from pipeline.imaging.readers import find_scans
from pipeline.records import reasons as records_reasons
from pipeline.records.join import NO_RECORDS, Records
from pipeline.records.labels import read_labels
from pipeline.records.laboratory import PcrResult, read_pcr
from pipeline.records.laboratory.times import Clock
from pipeline.records.outcomes import read_outcomes
from pipeline.site import reasons
from pipeline.site.folder import Site, SiteSettings
from pipeline.site.lung_masks import find_masks, with_masks
from pipeline.site.withdrawn import Withdrawn
from pipeline.system.findings import Finding

Value = TypeVar("Value")

# A row skipped for one of these reasons may have been positive, so the patient cannot be labelled negative. If a row,
# message or resource cannot be read, its patient is not always known.
SPOILS_NEGATIVE = {
    records_reasons.DATE,
    records_reasons.PCR_DATE,
    records_reasons.PCR_UNMAPPED_FLAGGED,
    records_reasons.PCR_PRELIMINARY,
    records_reasons.PCR_GENES_ONLY,
    records_reasons.ROW,
    records_reasons.HL7,
    records_reasons.FHIR,
    records_reasons.UNREAD_RECORD,
}


def read_records(site: Site) -> tuple[Records, list[Finding]]:
    """Read the site's laboratory and outcome files, or its labels. Rows of withdrawn patients are left out.

    A site without labels has NO_RECORDS.

    Raises Refusal E_NOTHING_FETCHED, or if a whole file cannot be used.
    """
    settings, withdrawn = site.settings, Withdrawn(site)
    if not settings.has_labels:
        return NO_RECORDS, []
    if settings.labels is not None:
        labels, findings = read_labels(settings.labels)
        under = {site.pseudonym(patient): label for patient, label in labels.items()}
        return Records({}, {}, set(), _without(under, withdrawn)), list(_pseudonymous(site, findings, withdrawn))
    assert settings.laboratory is not None and settings.outcomes is not None  # SiteSettings ensures it
    fetched = {site.fhir_store, site.omop_events} & {*settings.laboratory.sources, settings.outcomes.file}
    if any(not path.is_file() for path in fetched):
        raise Refusal(reasons.NOTHING_FETCHED)
    rows, laboratory_findings = read_pcr(
        settings.laboratory, time_zone=settings.site.time_zone, issuer=settings.site.issuer
    )
    outcomes, outcome_findings = read_outcomes(
        settings.outcomes,
        time_zone=settings.site.time_zone,
        issuer=settings.site.issuer,
        patients={row.patient_id for row in rows},
        needed=settings.join.severe_events,
    )
    results: dict[str, list[PcrResult]] = defaultdict(list)
    for row in rows:
        results[site.pseudonym(row.patient_id)].append(row)
    spoilt = {site.pseudonym(patient) for patient in spoilt_patients(laboratory_findings)}
    under_pseudonyms = {site.pseudonym(p): outcome for p, outcome in outcomes.items()}
    records = Records(_without(results, withdrawn), _without(under_pseudonyms, withdrawn), spoilt)
    return records, list(_pseudonymous(site, [*laboratory_findings, *outcome_findings], withdrawn))


def spoilt_patients(findings: Iterable[Finding]) -> set[str]:
    """Return the patients with a skipped laboratory row, as far as it is known whose it is."""
    return {finding.patient_id for finding in findings if finding.reason in SPOILS_NEGATIVE} - {""}


def read_series_list(site: Site, soon: Callable[[Series], None] | None = None) -> tuple[list[Series], list[Finding]]:
    """Find the site's series, with their lung masks; a series without a patient becomes a finding.

    A series of a withdrawn patient becomes a finding that names neither patient nor series. The times of scans are
    those of the site, as the times of its records are.

    `soon` receives each series with a patient while the search continues (see `discovery.find_series`).

    Raises Refusal: E_CT_FOLDER, E_MASK_FOLDER, E_NO_IMAGES.
    """
    folder = site.ct_folder
    if not folder.is_dir():
        raise Refusal(reasons.NOTHING_PULLED if site.settings.pacs else reasons.CT_FOLDER, private=str(folder))

    issuer, is_pulled = site.settings.site.issuer, site.settings.pacs is not None
    masks, withdrawn = find_masks(site.settings.ct.lung_masks, outside=folder), Withdrawn(site)

    def tell(each: Series) -> None:
        if soon and is_pulled and each.patient_id not in withdrawn:
            soon(_in_site_time(each, site.settings))
        elif soon and not is_pulled and _no_owner(each, issuer) is None:
            under = _under_pseudonym(with_masks(each, masks), site)
            if under.patient_id not in withdrawn:
                soon(_in_site_time(under, site.settings))

    # Other formats than DICOM contain no patient and no date. Only a labels file says whose they are.
    find = find_scans if site.settings.labels else find_series
    found, findings = find(folder, tell if soon else None)
    if not found:
        raise Refusal(imaging_reasons.NO_IMAGES)
    if is_pulled:  # `pull` has already replaced identifiers with pseudonyms
        return _of_others(found, [f for f in findings if f.patient_id not in withdrawn], withdrawn, site.settings)
    series = []
    findings = list(_pseudonymous(site, findings, withdrawn))
    for each in found:
        reason = _no_owner(each, issuer)
        if reason is None:
            series.append(_under_pseudonym(with_masks(each, masks), site))
        else:
            findings.append(Finding(reason, detail=str(each.files[0].parent), series=each.fingerprint[:12]))
    _check_issuers(series)
    return _of_others(series, findings, withdrawn, site.settings)


def identifiers_in_records(site: Site) -> dict[str, set[str]]:
    """Return all patient identifiers in the site's records by the table's name, those of skipped rows too.

    Raises Refusal if a whole file cannot be used, as `read_records` does.
    """
    settings = site.settings
    if not settings.has_labels:
        return {}
    if settings.labels is not None:
        labels, findings = read_labels(settings.labels)
        return {"labels": {*labels, *(finding.patient_id for finding in findings)} - {""}}
    assert settings.laboratory is not None and settings.outcomes is not None  # SiteSettings ensures it
    rows, skipped = read_pcr(settings.laboratory, time_zone=settings.site.time_zone, issuer=settings.site.issuer)
    outcomes, findings = read_outcomes(settings.outcomes)
    return {
        "laboratory": {*(row.patient_id for row in rows), *(finding.patient_id for finding in skipped)} - {""},
        "outcomes": {*outcomes, *(finding.patient_id for finding in findings)} - {""},
    }


def _of_others(
    series: list[Series], findings: list[Finding], withdrawn: Withdrawn, settings: SiteSettings
) -> tuple[list[Series], list[Finding]]:
    """Leave out the series of withdrawn patients; each becomes a finding, as does a time that cannot be converted."""
    others = [each for each in series if each.patient_id not in withdrawn]
    findings = [*findings, *[Finding(reasons.WITHDRAWN)] * (len(series) - len(others))]
    if settings.laboratory and not settings.site.time_zone:
        abroad = [each for each in others if each.acquired and each.acquired.tzinfo]
        findings += [Finding(reasons.SCAN_OFFSET, each.patient_id, series=each.fingerprint[:12]) for each in abroad]
    return [_in_site_time(each, settings) for each in others], findings


def _in_site_time(series: Series, settings: SiteSettings) -> Series:
    """Convert the time of a scan that has an offset from UTC to the site's time zone, if the site has set one."""
    clock = Clock.of(settings.site.time_zone)
    return replace(series, acquired=series.acquired and clock.of_scan(series.acquired))


def _without(by_patient: Mapping[str, Value], withdrawn: Withdrawn) -> dict[str, Value]:
    return {pseudonym: value for pseudonym, value in by_patient.items() if pseudonym not in withdrawn}


def _under_pseudonym(series: Series, site: Site) -> Series:
    return replace(series, patient_id=site.pseudonym(series.patient_id))


def _no_owner(series: Series, issuer: str) -> Reason | None:
    if not series.patient_id:
        return reasons.NO_PATIENT_ID
    if not is_decoded(series.patient_id, series.issuer):
        return reasons.PATIENT_ID_UNDECODED
    # An identifier without issuer belongs to the site.
    return reasons.ISSUER if issuer and series.issuer not in ("", issuer) else None


def _check_issuers(series: Iterable[Series]) -> None:
    """Refuse identifiers of two authorities, which may give one number to two people."""
    issuers = {each.issuer for each in series if each.issuer}
    if len(issuers) > 1:
        raise Refusal(reasons.ISSUERS, issuers=len(issuers), private=", ".join(sorted(issuers)))


def _pseudonymous(site: Site, findings: Iterable[Finding], withdrawn: Withdrawn) -> Iterable[Finding]:
    for finding in findings:
        pseudonym = finding.patient_id and site.pseudonym(finding.patient_id)
        if pseudonym not in withdrawn:
            yield replace(finding, patient_id=pseudonym)
