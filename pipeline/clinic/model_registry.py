"""The models of a clinic: verified, copied into CLINIC/models/SHA256, and replaced without downtime.

A new model first runs in shadow beside the live one, invisible to clinicians. An administrator compares the two and
promotes it. Each answer keeps the name of the model that gave it.
"""

import json
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.reasons import DERIVED_PARENT, DERIVED_UNSIGNED, MODEL_ALTERED, NO_MODEL
from models.refusal import Reason, Refusal
from models.signature import fingerprint
from pipeline.clinic.reasons import IS_LIVE, NEEDS_MASKS, NO_SUCH_MODEL, NOT_SHADOWED
from pipeline.clinic.records import Model, moment
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import Store
from pipeline.scoring.verdict import redecided
from pipeline.system.atomic_files import sync_folder, sync_tree
from pipeline.system.json_text import parse_json

if TYPE_CHECKING:
    from models.release import Release

MOST_COMPARED = 1000  # newest scans
MOST_DISAGREEMENTS = 50


@dataclass(frozen=True)
class Agreement:
    """Comparison of a shadow model with the live one, over the scans that both answered.

    `agreement`: by label, the share of scans with the same level in both; if the release defines no levels, on the same
    side of 0.5. `mean_difference`: by label, mean of shadow minus live probability.
    """

    scans: int
    agreement: dict[str, float]
    mean_difference: dict[str, float]


def add(clinic: Clinic, folder: Path, trusted_keys: Sequence[Path] = (), *, by: str) -> Model:
    """Copy a release, and keep the copy if it is intact and, if `trusted_keys` are given, signed by one of them.

    Imports torch. Raises Refusal E_CLINIC_FILE, E_NEEDS_MASKS and what `load_release` raises; for a release that a
    hospital derived also E_DERIVED_UNSIGNED, E_DERIVED_PARENT and E_DERIVED_ALTERED. Raises OSError if the disk is
    full.
    """
    from models.release import DESCRIPTION, load_release
    from pipeline.preprocessing.preprocess_settings import EXTERNAL

    if not (folder / DESCRIPTION).is_file():
        raise Refusal(NO_MODEL, private=str(folder))
    incoming = clinic.models / f".incoming-{secrets.token_hex(8)}"
    try:
        shutil.copytree(folder, incoming)
        release = load_release(incoming, trusted_keys)  # verify the copy: nobody can change it between check and use
        if release.description.preprocessing.get("method") in (EXTERNAL, "external"):
            raise Refusal(NEEDS_MASKS)
        if release.description.adaptation is not None:
            _require_approved_parent(clinic, release)
        _settle(incoming, clinic.models / release.sha256)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    with clinic.store() as store:
        store.models.add(release.sha256, release.description.study, signed_by=release.signed_by, by=by)
        return named(store, release.sha256)


def _require_approved_parent(clinic: Clinic, derived: "Release") -> None:
    """Require that a derived release is signed, and is one of this clinic's signed models with other statistics.

    So the hospital's key alone, for example a stolen one, brings no other weights into the clinic. Raises Refusal
    E_DERIVED_UNSIGNED, E_DERIVED_PARENT, E_DERIVED_ALTERED.
    """
    from models.norm_statistics import require_derived
    from models.release import load_release

    assert derived.description.adaptation is not None
    if derived.signed_by is None:
        raise Refusal(DERIVED_UNSIGNED)
    adaptation = derived.description.adaptation
    with clinic.store() as store:
        signed_by = {model.sha256: model.signed_by for model in store.models.all()}.get(adaptation.parent)
    if signed_by is None or signed_by != adaptation.parent_signed_by:
        raise Refusal(DERIVED_PARENT)
    require_derived(derived, load_release(clinic.models / adaptation.parent))


def add_in_a_child(clinic: Clinic, folder: Path, trusted_keys: Sequence[Path] = (), *, by: str) -> Model:
    """Add like `add`, without importing torch in this process. A known model is not verified again."""
    if kept := _kept(clinic, folder, trusted_keys):
        return kept
    from multiprocessing import get_context

    from pipeline.system.worker_pool import WorkerPool

    with WorkerPool(1, get_context("spawn")) as child:
        added = child.submit(_add_or_refusal, clinic.folder, folder, trusted_keys, by).result()
    if isinstance(added, Model):
        return added
    reason, private, numbers = added
    raise Refusal(reason, private=private, **numbers)


def named(store: Store, start: str) -> Model:
    """Return the model whose SHA-256 has this prefix. Raises Refusal E_NO_SUCH_MODEL if there is none, or several."""
    found = [model for model in store.models.all() if start and model.sha256.startswith(start.lower())]
    if len(found) != 1:
        raise Refusal(NO_SUCH_MODEL)
    return found[0]


def set_shadow(store: Store, sha256: str, *, by: str) -> None:
    """Run this model in shadow beside the live one from now on. Raises Refusal E_NO_SUCH_MODEL, E_IS_LIVE."""
    if named(store, sha256).role == "live":
        raise Refusal(IS_LIVE)
    store.models.set_shadow(sha256, by=by)


def promote(store: Store, sha256: str, *, by: str, force: bool = False) -> None:
    """Make this model the live one from now on.

    Raises Refusal E_NO_SUCH_MODEL, E_IS_LIVE, and, without `force`, E_NOT_SHADOWED if it never ran in shadow and never
    was the live model. So the clinic can always go back, also from a derived release to its parent.
    """
    if named(store, sha256).role == "live":
        raise Refusal(IS_LIVE)
    ran = store.database.row("SELECT 1 FROM answers WHERE model_sha256 = ?", sha256)
    if not (ran or force):
        raise Refusal(NOT_SHADOWED)
    store.models.set_live(sha256, by=by)


def take_up(store: Store, model: Model, *, by: str) -> Model:
    """Start to use an added model: as the live one if there is none, else in shadow."""
    live = store.models.with_role("live")
    if live is None:
        store.models.set_live(model.sha256, by=by)
    elif live.sha256 != model.sha256 and model.role != "shadow":
        store.models.set_shadow(model.sha256, by=by)
    return named(store, model.sha256)


def overview(clinic: Clinic, store: Store) -> list[dict[str, Any]]:
    """Return the models, oldest first, as the API (v1) gives them. Raises Refusal E_MODEL_ALTERED."""
    given = dict(map(tuple, store.database.rows("SELECT model_sha256, count(*) FROM answers GROUP BY 1")))
    listed = []
    for model in store.models.all():
        try:
            described = parse_json((clinic.models / model.sha256 / "model.json").read_bytes())
            about = {name: described[name] for name in ("study", "rounds", "sites", "trained_on_synthetic_data")}
            about["derived_from"] = (described.get("adaptation") or {}).get("parent")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Refusal(MODEL_ALTERED, private=model.sha256) from error
        beside = compare(store, model.sha256)
        answers = given.get(model.sha256, 0)
        listed.append({**model.to_json(), **about, "answers": answers, "beside_live": beside and vars(beside)})
    return listed


def compare(store: Store, sha256: str) -> Agreement | None:
    """Compare a shadow model with the model that was live then; None while no scan has both answers."""
    rows = store.database.rows(
        "SELECT shadow.score, live.score FROM answers AS shadow JOIN answers AS live USING (job_id)"
        " WHERE shadow.role = 'shadow' AND live.role = 'live' AND shadow.model_sha256 = ?"
        " ORDER BY shadow.number DESC LIMIT ?",
        sha256,
        MOST_COMPARED,
    )
    if not rows:
        return None
    pairs = [(_shown(shadow), _shown(live)) for shadow, live in rows]
    both = [set(shadow["probability"]) & set(live["probability"]) for shadow, live in pairs]
    labels = sorted(set.intersection(*both))  # a label without a number in one of them cannot be compared
    return Agreement(
        scans=len(pairs),
        agreement={label: sum(_agree(shadow, live, label) for shadow, live in pairs) / len(pairs) for label in labels},
        mean_difference={
            label: sum(shadow["probability"][label] - live["probability"][label] for shadow, live in pairs) / len(pairs)
            for label in labels
        },
    )


def disagreements(store: Store, sha256: str) -> list[dict[str, Any]]:
    """Return the newest scans for which a shadow model and the live model had another level, as the API (v1) does.

    At most `MOST_DISAGREEMENTS`, newest first, by label; of no patient. Raises Refusal E_CLINIC_FILE.
    """
    rows = store.database.rows(
        "SELECT live.job_id, live.created_at, shadow.score AS shadow, live.score AS live FROM answers AS shadow"
        " JOIN answers AS live USING (job_id) WHERE shadow.role = 'shadow' AND live.role = 'live'"
        " AND shadow.model_sha256 = ? ORDER BY shadow.number DESC LIMIT ?",
        *(sha256, MOST_COMPARED),
    )
    found: list[dict[str, Any]] = []
    for row in rows:
        shadow, live = _shown(row["shadow"]), _shown(row["live"])
        found += [
            {
                "job_id": row["job_id"],
                "at": moment(datetime.fromisoformat(row["created_at"])),
                "label": label,
                **{name: _said(score, label) for name, score in (("live", live), ("shadow", shadow))},
            }
            for label in sorted(set(shadow["probability"]) & set(live["probability"]))
            if not _agree(shadow, live, label)
        ]
    return found[:MOST_DISAGREEMENTS]


def _shown(stored: str) -> dict[str, Any]:
    """Return a stored score as every other page shows it, also if an earlier version wrote it."""
    return redecided(json.loads(stored))


def _said(score: dict[str, Any], label: str) -> dict[str, Any]:
    return {"probability": score["probability"][label], "level": (score.get("level") or {}).get(label)}


def _agree(one: dict[str, Any], other: dict[str, Any], label: str) -> bool:
    """Whether two scores have the same level; if one has none, whether both are at 0.5 or above, or both below."""
    levels = [(score.get("level") or {}).get(label) for score in (one, other)]
    if all(levels):
        return levels[0] == levels[1]
    return (one["probability"][label] >= 0.5) == (other["probability"][label] >= 0.5)


def _kept(clinic: Clinic, folder: Path, trusted_keys: Sequence[Path]) -> Model | None:
    """Return the model if exactly these files were verified before, with one of the trusted keys if there are any.

    Raises Refusal E_TRUSTED_KEY.
    """
    trusted = {fingerprint(key) for key in trusted_keys}
    with clinic.store() as store:
        for model in store.models.all():
            is_trusted = model.signed_by in trusted if trusted else True
            if is_trusted and folder.is_dir() and _same(folder, clinic.models / model.sha256):
                return model
    return None


def _add_or_refusal(
    clinic_folder: Path, folder: Path, trusted_keys: Sequence[Path], by: str
) -> Model | tuple[Reason, str, dict[str, float | int | str]]:
    """Run `add` in the child process; a Refusal itself cannot be pickled."""
    try:
        return add(Clinic.open(clinic_folder), folder, trusted_keys, by=by)
    except Refusal as refusal:
        return refusal.reason, refusal.private, refusal.numbers


def _settle(incoming: Path, place: Path) -> None:
    """Move the copy to its final name, completely or not at all, even after a power cut."""
    if place.is_dir() and _same(incoming, place):
        return
    sync_tree(incoming)
    if place.exists():  # damaged, or with fewer files than this copy
        place.rename(incoming.with_name(f"{incoming.name}-before"))
    incoming.rename(place)
    sync_folder(place.parent)
    shutil.rmtree(incoming.with_name(f"{incoming.name}-before"), ignore_errors=True)


def _same(one: Path, other: Path) -> bool:
    """Whether two folders contain the same files."""
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    if names != {path.relative_to(other) for path in other.rglob("*") if path.is_file()}:
        return False
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
