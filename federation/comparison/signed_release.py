"""Make a signed release from a run: `fedthorax study release`. Of a pretraining, sign its pretrained start.

The released model is the evaluated one: the candidate's weights and calibration, with the thresholds and the record of
the run from results.json. The folder is also a MONAI bundle and is signed as a whole. The run's registered version in
MLflow gets the alias `released`.

    SERVER_DIR/release.key            the signing key; created on first use, and it never leaves the server
    SERVER_DIR/releases/<run>/        the release
    SERVER_DIR/releases/<run>.pub     the public key, to be sent over another channel than the release
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from federation.comparison import reasons
from federation.comparison.release_gate import doubts
from federation.protocol.release_files import ENCODER_FILES, ENCODERS
from federation.protocol.study_packages import allow_in_run
from federation.runs import reasons as runs_reasons
from federation.runs.figures_from_counts import means_row, of_label, pooled_row, summed_of
from federation.runs.progress import rounds_of
from federation.runs.results import FEDERATED, Audit, Results, read_results
from federation.runs.run_folder import find_run, read_study
from models.attacks import Attacks
from models.description import Description, EncoderRecord
from models.encoders import EncoderCard, load_encoder
from models.network_settings import LABELS
from models.provenance import AuditRecord, FlagRecord, Provenance, SiteRecord, SumsRecord
from models.reasons import ENCODER_CLOSED
from models.refusal import Refusal
from models.release import ATTACKS, Release, add_attacks, load_release, save_release
from models.signature import fingerprint, new_private_key, public_key, sign
from pipeline.bundle import write_bundle
from pipeline.system.atomic_files import write_durably
from pipeline.system.work_folder import work_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

RELEASED = "released"  # the alias in MLflow
RELEASES, KEY = "releases", "release.key"
# Prefixes of the site metrics that go into the card; results.json has the others.
_FIGURES = ("auroc_", "auprc_", "brier_", "ece_", "calibration_", "prevalence_", "sens_at_rule", "spec_at_rule")
_INTERNAL = "No hospital outside the training has evaluated it: its performance elsewhere is not known."
_LEARNT_BEFORE = (
    "Its encoder learnt before from patients of {sites}. Differential privacy here does not cover that, and a figure "
    "without one of these hospitals is not that of a model which never saw its patients."
)


@dataclass(frozen=True)
class Released:
    """A finished release. `key_sha256`: fingerprint of the public key; `version`: in MLflow; "" of a start."""

    folder: Path
    public_key: Path
    sha256: str
    key_sha256: str
    version: str

    def to_json(self) -> dict[str, str]:
        return {
            "release": str(self.folder),
            "sha256": self.sha256,
            "public_key": str(self.public_key),
            "key_sha256": self.key_sha256,
            "mlflow_version": self.version,
        }


def release_run(
    run_name: str,
    server: Path,
    say: Callable[[str], None],
    *,
    out: Path | None = None,
    key: Path | None = None,
    reason: str = "",
    encoder: Path | None = None,
) -> Released:
    """Release a run's candidate to the folder `out`, signed with `key`. The folder is written completely or not at all.

    `reason`: why a model with `release_gate.doubts` is released. `encoder`: folder of the study's frozen encoder, which
    the release brings; of a study that tunes it, the run has a copy. The pretrained start of a pretraining is signed as
    it is: it keeps its name, and is no model to register or to score with.

    Raises Refusal: E_RUN_UNKNOWN, E_RESULTS, E_CANDIDATE_OTHER, E_AUDIT_FLAGS, E_RELEASE_EXISTS, E_SIGNING_KEY,
    E_MLFLOW_SILENT, those of `load_release` for the candidate, those of `load_encoder`, and E_ENCODER_CLOSED if that is
    not the study's encoder.
    """
    run = find_run(server, run_name)
    out = (out or server / RELEASES / run_name).absolute()
    if read_study(run).network.pretrains:
        return _release_start(run / "release", out, key or _own_key(server))
    results = read_results(run)
    allow_in_run(results.study, run)
    candidate = load_release(run / "release")
    if candidate.sha256 != results.release:
        raise Refusal(reasons.CANDIDATE_OTHER, private=str(run))
    found = doubts(results)
    for flag in found:
        say(f"{flag.code}, {flag.site or 'all hospitals'}: {flag.says}")
    if found and not reason.strip():
        raise Refusal(reasons.AUDIT_FLAGS, flags=", ".join(sorted({flag.code for flag in found})))
    _check_free(out)
    if encoder is None and candidate.description.network.tuned_stages:  # the run has a copy
        encoder = run / ENCODERS / candidate.description.network.encoder
    brought = _encoder_of(candidate.description, encoder)
    key = key or _own_key(server)
    learnt_before = brought.learnt_at if brought else ()
    described = describe(candidate.description, results, reason=reason if found else "", learnt_before=learnt_before)
    if brought:
        record = EncoderRecord(name=brought.name, source=brought.source, licence=brought.licence)
        described = described.model_copy(update={"encoder": record})
    with _written_whole(out, key) as (folder, handed_out):
        release = _write(folder, candidate, described, run / "release" / ATTACKS, encoder if brought else None)
        sign(folder, key)
        load_release(folder, [handed_out])  # as every scoring process does
        version = mark_released(server, results, folder, release.sha256, say)
    return Released(out, _public(out), release.sha256, fingerprint(_public(out)), version)


def _release_start(start: Path, out: Path, key: Path) -> Released:
    """Sign a copy of a pretrained start. Raises Refusal: E_NO_MODEL before the run's end, E_RELEASE_EXISTS, ..."""
    name = load_release(start, pretrained=True).sha256
    _check_free(out)
    with _written_whole(out, key) as (folder, handed_out):
        shutil.copytree(start, folder)
        sign(folder, key)
        load_release(folder, [handed_out], pretrained=True)
    return Released(out, _public(out), name, fingerprint(_public(out)), "")


def _public(out: Path) -> Path:
    return out.with_name(f"{out.name}.pub")


def _check_free(out: Path) -> None:
    """Raise Refusal E_RELEASE_EXISTS if there is a release or a key in the way."""
    if os.path.lexists(out) or os.path.lexists(_public(out)):
        raise Refusal(reasons.RELEASE_EXISTS, private=str(out))


@contextmanager
def _written_whole(out: Path, key: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the folder to write and the public key of `key`; both get their names at the end of the block.

    Raises Refusal E_SIGNING_KEY.
    """
    public_pem = public_key(key)
    out.parent.mkdir(parents=True, exist_ok=True)
    with work_folder(out) as work:
        folder, handed_out = work / out.name, work / _public(out).name
        handed_out.write_bytes(public_pem)
        yield folder, handed_out
        handed_out.rename(_public(out))
        folder.rename(out)


def describe(
    candidate: Description, results: Results, *, reason: str, learnt_before: Collection[str] = ()
) -> Description:
    """Return the candidate's description with the run's results: thresholds, hospitals, audit, doubts, limits.

    `learnt_before`: the hospitals whose patients trained its encoder.
    """
    provenance = Provenance(
        candidate=results.release,
        seed=results.study.study.seed,
        rounds_planned=results.study.study.rounds,
        rounds_lost=sum(bool(entry["lost"]) for entry in rounds_of(results.history)),
        stopped_early=results.stopped_early,
        strategy_options=dict(results.study.strategy.options),
        sites=_sites(results, learnt_before),
        audit=_audit(results.audit),
        doubts=tuple(FlagRecord(**flag.model_dump()) for flag in doubts(results)),
        despite_flags=reason,
        study=results.study.model_dump(mode="json", exclude_none=True),
        sums=_sums(results),
    )
    has_external = any(record.figures and not record.trained for record in provenance.sites.values())
    limits = [] if has_external else [_INTERNAL]
    if learnt_before:
        limits.append(_LEARNT_BEFORE.format(sites=", ".join(learnt_before)))
    return candidate.model_copy(
        update={
            "operating_points": results.operating_points or candidate.operating_points,
            "missing_points": results.missing_points or candidate.missing_points,
            "provenance": provenance,
            "limits": (*candidate.limits, *limits),
        }
    )


def mark_released(server: Path, results: Results, folder: Path, sha256: str, say: Callable[[str], None]) -> str:
    """Set the alias `released` on the candidate's registered version, and add the signed folder to its MLflow run.

    Returns the version. Raises Refusal E_MLFLOW_SILENT, also if the candidate is not registered yet.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # by default MLflow retries for minutes
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from federation.runs.tracking import hand_over_rest, tracking_uri

    hand_over_rest(server, say)
    uri, name = tracking_uri(server), results.study.study.name
    try:
        client = MlflowClient(uri, uri)
        version = _version(client, name, results.release)
        client.log_artifacts(str(version.run_id), str(folder), RELEASED)
        client.set_model_version_tag(name, version.version, "release_sha256", sha256)
        client.set_registered_model_alias(name, RELEASED, version.version)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise Refusal(runs_reasons.MLFLOW_SILENT, private=str(error)) from error
    return str(version.version)


def _version(client: "MlflowClient", name: str, candidate: str) -> "ModelVersion":
    """Return the newest version with the candidate's weights."""
    found = [v for v in client.search_model_versions(f"name = '{name}'") if v.tags.get("sha256") == candidate]
    if not found:
        raise Refusal(runs_reasons.MLFLOW_SILENT)
    return max(found, key=lambda version: int(version.version))


def _own_key(server: Path) -> Path:
    key = server / KEY
    if not key.exists():
        write_durably(key, new_private_key())  # readable only by its owner
    return key


def _encoder_of(candidate: Description, folder: Path | None) -> EncoderCard | None:
    """Return the encoder that a release needs; None if it needs none. Raises Refusal as `release_run` says."""
    if not candidate.network.encoder:
        return None
    card = load_encoder(folder).card if folder else None
    if card is None or card.sha256 != candidate.network.encoder:
        raise Refusal(ENCODER_CLOSED)
    return card


def _write(folder: Path, candidate: Release, described: Description, attacks: Path, encoder: Path | None) -> Release:
    """Write the release's files, unsigned, including the attack results of the candidate and its encoder."""
    release = save_release(folder, candidate.network, described)
    if attacks.exists():
        add_attacks(folder, Attacks.model_validate_json(attacks.read_bytes()))
    if encoder is None:
        write_bundle(folder, release)
    else:  # MONAI's configuration knows no encoder
        for name in ENCODER_FILES:
            shutil.copyfile(encoder / name, folder / name)
    return release


def _sites(results: Results, learnt_before: Collection[str]) -> dict[str, SiteRecord]:
    """Return each site that answered the handshake, trained, or evaluated the model.

    `learnt_before`: sites whose patients trained the model's encoder.
    """
    federated, rounds = results.model(FEDERATED), rounds_of(results.history)
    counted = Counter(site for entry in rounds for site in entry["sites"])
    trained = set(federated.trained_at if federated else counted)
    figures = federated.figures if federated else {}
    records = {}
    for site in sorted({*results.sites, *trained, *figures}):
        about, without = results.sites.get(site), results.model(f"without {site}")
        records[site] = SiteRecord(
            patients=about.patients if about else "",
            software=about.version if about else "",
            trained=site in trained or site in learnt_before,
            rounds=counted[site],
            dropouts=dict(Counter(entry["refused"][site] for entry in rounds if site in entry["refused"])),
            figures=_kept(figures.get(site, {})),
            left_out=_kept(without.figures.get(site, {})) if without else {},
        )
    return records


def _sums(results: Results) -> SumsRecord | None:
    """Return what is known of a masked study, without numbers of patients."""
    summed = summed_of(results)
    if summed is None:
        return None
    means = _kept(means_row(results))
    return SumsRecord(
        together=_kept(pooled_row(results)),
        means=means,
        known={name: share for name, share in summed.known.items() if name in means},
        sites={label: found.sites for label in LABELS if (found := of_label(results, label))},
    )


def _kept(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in sorted(figures.items()) if name.startswith(_FIGURES)}


def _audit(audit: Audit | None) -> AuditRecord | None:
    if audit is None:
        return None
    return AuditRecord(
        probe_accuracy=audit.probe.accuracy if audit.probe else None,
        probe_chance=audit.probe.chance if audit.probe else None,
        sites=audit.sites,
        flags=tuple(FlagRecord(**flag.model_dump()) for flag in audit.flags),
        means=audit.means,
    )
