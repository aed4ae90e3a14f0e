"""Health checks, and metrics for Prometheus. The metrics count scans and contain no patient data."""

import shutil
from collections import Counter
from collections.abc import Iterator
from typing import get_args

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from models.refusal import Refusal
from pipeline.clinic.later_outcomes import later_outcomes
from pipeline.clinic.local_audit import LocalAudit, local_audit
from pipeline.clinic.records import JOB_STATES, DeliveryState, Target, Verdict, WhyNot
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import Store
from pipeline.clinic.web import schemas
from pipeline.clinic.web.auth import Tokens
from pipeline.clinic.web.dependencies import Reader, TheClinic
from pipeline.clinic.web.error_responses import documented
from pipeline.clinic.web.middleware import MB
from pipeline.clinic.web.scans import KEEP_FREE_MB

_STAGES = ("read", "prepare", "predict", "explain", "total")

health = APIRouter(tags=["health"])


@health.get("/health/live", summary="Whether the server responds")
def live() -> dict[str, bool]:
    """Return true, always."""
    return {"live": True}


@health.get(
    "/health/ready",
    response_model=schemas.Readiness,
    responses={503: {"model": schemas.Readiness, "description": "Not ready."}},
    summary="Whether scans are scored",
)
def ready(clinic: TheClinic, response: Response) -> schemas.Readiness:
    """Report whether the worker runs, the model is loaded, and the disk has space."""
    has_disk = shutil.disk_usage(clinic.folder).free > KEEP_FREE_MB * MB
    try:
        with clinic.store() as store:
            state, _ = store.worker.get()
    except Refusal:
        state, has_disk = "starting", False
    readiness = schemas.Readiness(
        ready=state == "ready" and has_disk, worker=state != "starting", model=state == "ready", disk=has_disk
    )
    response.status_code = 200 if readiness.ready else 503
    return readiness


@health.get("/metrics", response_class=Response, responses=documented(), summary="Metrics for Prometheus")
def metrics(request: Request, _: Reader) -> Response:
    """Return metrics in Prometheus' text format. The scraper needs a token with the role read."""
    registry: CollectorRegistry = request.app.state.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class Figures(Collector):
    """Metrics computed from the store, so that a restart of the service loses nothing.

    Counts decrease if clinic.toml lets old answers be removed; Prometheus treats that as a reset.
    """

    def __init__(self, clinic: Clinic, tokens: Tokens) -> None:
        self._clinic, self._tokens = clinic, tokens

    def describe(self) -> list[Metric]:
        return []  # otherwise the registry would call `collect` to learn the names

    def collect(self) -> Iterator[Metric]:
        with self._clinic.store() as store:
            yield _jobs(store)
            yield _no_scores(store)
            yield _seconds(store)
            yield from _deliveries(store)
            yield _model(store)
            yield from _local_audit(local_audit(store, later_outcomes(self._clinic)))
            state, _ = store.worker.get()
            yield GaugeMetricFamily("fedthorax_queue_length", "Waiting scans", store.jobs.waiting())
            yield GaugeMetricFamily("fedthorax_worker_ready", "Whether scans are being scored", state == "ready")
        sessions = self._tokens.open_sessions()
        yield GaugeMetricFamily("fedthorax_sessions", "Signed-in browsers", sessions)


def _jobs(store: Store) -> Metric:
    family = GaugeMetricFamily("fedthorax_jobs", "Scans by state", labels=["state"])
    for state in JOB_STATES:
        family.add_metric([state], store.jobs.count(state))
    return family


def _no_scores(store: Store) -> Metric:
    family = GaugeMetricFamily("fedthorax_no_score", "Scans without a score, by reason", labels=["code"])
    for code, count in store.database.rows("SELECT code, count(*) FROM jobs WHERE state = 'no_score' GROUP BY code"):
        family.add_metric([code], count)
    return family


def _seconds(store: Store) -> Metric:
    """Return the time of live answers by stage, from their scores."""
    family = SummaryMetricFamily("fedthorax_scoring_seconds", "Time of a scan by stage", labels=["stage"])
    for stage in _STAGES:
        (row,) = store.database.rows(
            "SELECT count(seconds), coalesce(sum(seconds), 0) FROM"
            " (SELECT json_extract(score, ?) AS seconds FROM answers WHERE role = 'live')",
            f"$.timing_seconds.{stage}",
        )
        family.add_metric([stage], count_value=row[0], sum_value=row[1])
    return family


def _deliveries(store: Store) -> Iterator[Metric]:
    family = GaugeMetricFamily("fedthorax_outbox", "Deliveries by target and state", labels=["target", "state"])
    rows = store.database.rows("SELECT target, state, count(*) FROM deliveries GROUP BY target, state")
    found = {(target, state): count for target, state, count in rows}
    for target in get_args(Target):
        for state in get_args(DeliveryState):
            family.add_metric([target, state], found.get((target, state), 0))
    yield family
    problems = Counter((each.target, each.state, each.code or "") for each in store.deliveries.problems())
    labels = ["target", "state", "code"]
    open_ones = GaugeMetricFamily("fedthorax_outbox_problems", "Deliveries that failed or are retried", labels=labels)
    for named, count in sorted(problems.items()):
        open_ones.add_metric(named, count)
    yield open_ones


def _local_audit(found: LocalAudit | None) -> Iterator[Metric]:
    """Yield how readers and outcomes agree with the live model; a model without answers has zeros."""
    decisions = GaugeMetricFamily("fedthorax_decisions", "Answers by the reader's decision", labels=["verdict"])
    why = GaugeMetricFamily("fedthorax_decision_reasons", "Corrected and rejected answers by reason", labels=["reason"])
    agreement = GaugeMetricFamily("fedthorax_level_agreement", "Share of levels left as they were", labels=["label"])
    drift = GaugeMetricFamily("fedthorax_drift", "Difference in standard errors", labels=["figure"])
    alert = GaugeMetricFamily("fedthorax_drift_alert", "1: more than 3 standard errors", labels=["figure"])
    outcomes = GaugeMetricFamily("fedthorax_outcomes", "Patients with a known outcome", labels=["label"])
    calibration = GaugeMetricFamily(
        "fedthorax_calibration",
        "Mean probability, and share of events with 95 % interval",
        labels=["label", "what"],
    )
    if found:
        for label, each in found.calibration.items():
            told = each.whole.to_json()
            outcomes.add_metric([label], told["patients"])
            for what in ("expected", "observed", "low", "high"):
                calibration.add_metric([label, what], told[what])
        for verdict in get_args(Verdict):
            decisions.add_metric([verdict], found.verdicts.get(verdict, 0))
        for reason in get_args(WhyNot):
            why.add_metric([reason], found.reasons.get(reason, 0))
        for label in found.levels:
            agreement.add_metric([label], found.agreement(label) or 0)
        for figure, compared in found.drift.items():
            alert.add_metric([figure], compared.is_alert)
            if compared.errors is not None:
                drift.add_metric([figure], compared.errors)
    yield from (decisions, why, agreement, drift, alert, outcomes, calibration)


def _model(store: Store) -> Metric:
    family = InfoMetricFamily("fedthorax_model", "The models in use", labels=["role"])
    for model in store.models.all():
        if model.role:
            family.add_metric([model.role], {"sha256": model.sha256, "name": model.name})
    return family
