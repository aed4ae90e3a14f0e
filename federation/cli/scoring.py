"""`fedthorax score`: load the model, score one scan, print the result and write the page."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from federation.cli.console import print_json, print_table, say
from federation.cli.reasons import SCORE_DEVICE
from models.compute import Compute
from models.compute_settings import ComputeSettings
from models.operating_points import POINTS
from models.reasons import COMPUTE_DEVICE
from models.refusal import Refusal
from models.release import Release, load_release
from pipeline.preprocessing.lesion_burden import EXTERNAL_MASK, PARTS, SIDES
from pipeline.scoring.score import Score, score_scan
from pipeline.scoring.single_scan import OneScan, read_one
from pipeline.scoring.verdict import SYNTHETIC, percent
from pipeline.system.garbage import uncollected
from pipeline.system.malloc import keep_memory


def score_series(
    series: Sequence[Path],
    *,
    model: Path,
    trusted: Sequence[Path] = (),
    series_uid: str | None = None,
    lungs: Path | None = None,
    out: Path | None,
    device: str = "cpu",
    runs_package: bool = False,
    as_json: bool,
) -> None:
    """Score one series and show the answer. With `out`, also write the files there.

    The files are score.json, score.html, and the label maps lungs.nii.gz and opacities.nii.gz on the scan's grid. If
    the model gives no answer but the scan shows a whole chest, they are the label maps, lungs.json with the table, and
    lungs.html. They replace those of an earlier answer in `out`. If the scan gets no files, those are removed, so that
    nobody takes them for this scan's.

    `trusted`: public keys, one of which must have signed the model. If it is empty, the signature is not checked.
    `series_uid`: chooses among several DICOM series. `lungs`: the hospital's own lung mask of this scan.
    `device`: the value of --device, as in [compute] of site.toml.
    `runs_package`: as for `load_release`.

    Raises Refusal: E_SCORE_DEVICE, and those of `require_apart`, `load_release`, `read_one`, `score_scan` and
    `replacing_answer`.
    """
    if out is not None:
        from pipeline.scoring.answer_folder import require_apart

        require_apart(out, series, lungs)
    with _no_earlier_answer(out):
        compute = _open_device(device)
        keep_memory()
        with uncollected():  # it imports MONAI
            release = load_release(model, trusted, runs_package=runs_package)
        scan = read_one(series[0] if len(series) == 1 else series, series_uid, lungs=lungs)
        result = _answer(scan, release, compute, out)
    if isinstance(result, Refusal):
        raise result
    content = result.to_json()
    if as_json:
        print_json(content)
        return
    _print(result)
    say(f"Model {release.sha256[:12]}: {result.signature}")
    for doubt in result.doubts:
        say(f"Reason to doubt it: {doubt.says}{f' ({doubt.site})' if doubt.site else ''}")
    if because := release.description.released_because:
        say(f"Released because: {because}")
    say(content["notice"])
    if out is not None:
        from pipeline.scoring.html_report import PAGE

        say(f"Page: {out / PAGE}")


def _open_device(device: str) -> Compute:
    """Open the processor of --device. Raises Refusal E_SCORE_DEVICE, as E_COMPUTE_DEVICE is about a settings file."""
    try:
        # One thread, as in the clinic: the network is small, and more threads only wait for each other.
        return Compute.open(ComputeSettings(device=device), threads=1)
    except Refusal as refusal:
        if refusal.reason is not COMPUTE_DEVICE:
            raise
        raise Refusal(SCORE_DEVICE, device=device, private=refusal.private) from refusal


@contextmanager
def _no_earlier_answer(out: Path | None) -> Iterator[None]:
    """Remove an earlier answer from `out` if the block fails: it may be another patient's."""
    try:
        yield
    except BaseException:
        if out is not None:
            _remove_answer(out)
        raise


def _remove_answer(out: Path) -> None:
    from pipeline.scoring.answer_folder import may_hold_answer, remove_answer

    try:
        if remove_answer(out):
            say(f"This scan has no answer. The files of an earlier answer were removed from {out}.")
    except OSError as error:  # what failed before is shown too, and says more
        if may_hold_answer(out):
            say(f"This scan has no answer. Files of an earlier answer may still be in {out}: {error.strerror}.")


def _answer(scan: OneScan, release: Release, compute: Compute, out: Path | None) -> Score | Refusal:
    """Score the scan and write the answer's files. If there is no score but files, return why there is none.

    Raises Refusal: those of `score_scan` if nothing is written, and E_REPORT_WRITE.
    """
    try:
        result = score_scan(scan, release, compute=compute)
    except Refusal as refusal:
        if out is None or not _write_lungs(scan, refusal, out):
            raise
        return refusal
    if out is not None:
        _write_score(result, out)
    return result


def _write_score(result: Score, out: Path) -> None:
    from pipeline.scoring.answer_folder import SCORE, replacing_answer
    from pipeline.scoring.html_report import write_report
    from pipeline.scoring.label_maps import write_labels

    content = json.dumps(result.to_json(), indent=1, ensure_ascii=False)
    with replacing_answer(out) as folder:
        (folder / SCORE).write_text(content, encoding="utf-8")
        write_report(result, folder)
        write_labels(result.burden, result.volume, folder)


def _print(result: Score) -> None:
    points = result.operating_points
    print_table(
        ["", "probability", "95 % band", "level", "rule out below", "rule in from"],
        [
            [
                label,
                percent(p),
                " to ".join(map(percent, result.intervals.get(label, ()))),
                "not valid" if result.withheld else result.levels[label] or "",
                *(_percent(points.get(label, {}).get(point, {}).get("threshold")) for point in POINTS),
            ]
            for label, p in result.probabilities.items()
        ],
        title=SYNTHETIC if result.model.trained_on_synthetic_data else None,
        whole=2,
    )
    for label, why in result.no_number.items():
        say(f"{label}: {why}")
    if "uncertain" in result.levels.values():
        say("Uncertain: the 95 % band crosses a threshold.")
    for label in result.probabilities:
        _say_points(result, label)
    if result.burden.lungs_from == EXTERNAL_MASK:
        say(f"Lungs: {EXTERNAL_MASK}")
    regions = result.burden.regions
    print_table(
        ["ground glass, solid", *SIDES],
        [
            [
                part,
                *(f"{_percent(of[part].ground_glass)}, {_percent(of[part].consolidation)}" for of in regions.values()),
            ]
            for part in PARTS
        ],
    )
    if within := result.burden.ranges:
        glass, solid = (_range(within[share]) for share in ("ground_glass", "consolidation"))
        say(f"Both lungs: ground glass {glass}, solid {solid}. The true shares of 95 % of synthetic scans are within.")
    print_table(
        ["check", "value", "verdict"], [[c.name, f"{c.value} {c.unit}".strip(), c.verdict] for c in result.checks]
    )


def _range(limits: tuple[float, float]) -> str:
    return " to ".join(_percent(limit) for limit in limits)


def _write_lungs(scan: OneScan, refusal: Refusal, out: Path) -> bool:
    """Write what can be measured without a model, if the scan shows a whole chest. Return whether it does."""
    from pipeline.scoring.answer_folder import UNSCORED, replacing_answer
    from pipeline.scoring.html_report import UNSCORED_PAGE, write_unscored_report
    from pipeline.scoring.label_maps import write_labels
    from pipeline.scoring.lungs_alone import measure_lungs

    try:
        lungs = measure_lungs(scan.volume, scan.mask, stated=scan.stated, unread=scan.unread)
    except Refusal:
        return False
    with replacing_answer(out) as folder:
        write_labels(lungs.burden, lungs.volume, folder)
        (folder / UNSCORED).write_text(json.dumps(lungs.to_json(), indent=1), encoding="utf-8")
        write_unscored_report(lungs, refusal, folder)
    say(f"The lungs and their dense parts, which need no model: {out / UNSCORED_PAGE}")
    for flag in lungs.flags:
        if flag.reason:
            say(f"Before you use them: {flag.reason.says}. {flag.reason.remedy} ({flag.reason.code})")
    return True


def _say_points(result: Score, label: str) -> None:
    """Print what is known of a label's thresholds, and why one is missing."""
    for point, at in result.operating_points.get(label, {}).items():
        say(f"{label}, to {point.replace('_', ' ')}: {at['says']}")
    for text in dict.fromkeys(result.missing_points.get(label, {}).values()):
        say(f"{label}: {text}")


def _percent(share: float | None) -> str:
    """Format a threshold or a share, which may be 0; for a probability, see `percent`."""
    return "" if share is None else f"{100 * share:.1f} %"
