"""The digest of the data contract: equal for equal rules, different for different rules."""

from pathlib import Path

import pytest

from models.refusal import Reason
from pipeline.cohort.store import Cohort, PatientRow
from pipeline.doctor import contract, reasons
from pipeline.doctor.digest import LATER, contract_digest, severe_means
from pipeline.records.join import JoinRules
from pipeline.records.labels import LabelsFile
from pipeline.site.folder import init_site, site_settings

FROM_RECORDS = (
    '[site]\nname = "{name}"\n[laboratory]\nfile = "pcr.csv"\n[outcomes]\nfile = "outcomes.csv"\nicu = "icu"\n'
)
PUBLISHED = '[site]\nname = "{name}"\n[labels]\nfile = "labels.csv"\n'


def digest(folder: Path, name: str = "north", more: str = "", text: str = FROM_RECORDS) -> str:
    return contract_digest(init_site(folder / f"{name}{len(list(folder.iterdir()))}", text.format(name=name) + more))


def test_sites_with_the_same_contract_have_the_same_digest(tmp_path: Path) -> None:
    usual = digest(tmp_path)
    other = '[ct]\nfolder = "scans"\n[training]\nthreads = 3\n[gateway]\nmax_local_epochs = 2\n'
    assert digest(tmp_path, "south", other) == usual
    assert len(usual) == 64
    template = init_site(tmp_path / "template", site_settings(None, name="west"))
    assert contract_digest(template) == usual


def test_digest_does_not_depend_on_patients(tmp_path: Path) -> None:
    site = init_site(tmp_path / "site", FROM_RECORDS.format(name="north"))
    before = contract_digest(site)
    with Cohort(site) as cohort:
        cohort.replace([PatientRow(f"{n:016}", "train", f"{n}.npy", 60.0, "F", True, None) for n in range(30)], [], [])
    assert contract_digest(site) == before


@pytest.mark.parametrize(
    "join",
    [
        "positive_to_days = 3",
        "negative_from_days = -1",
        "guard_days = 15",
        "horizon_days = 28",
        'severe_events = ["died"]',
    ],
)
def test_other_join_windows_or_events_change_the_digest(tmp_path: Path, join: str) -> None:
    assert digest(tmp_path, more=f"[join]\n{join}\n") != digest(tmp_path)


def test_order_of_events_does_not_change_the_digest(tmp_path: Path) -> None:
    assert digest(tmp_path, more='[join]\nsevere_events = ["died", "intubated"]\n') == digest(tmp_path)


def test_published_labels_with_the_same_severe_means_have_the_same_digest(tmp_path: Path) -> None:
    assert severe_means(JoinRules()) == LabelsFile(file=Path("labels.csv")).severe_means
    assert severe_means(JoinRules(severe_events=["died", "icu"], horizon_days=7)) == (
        "in intensive care or dead within 7 days of the CT"
    )
    assert digest(tmp_path, text=PUBLISHED) == digest(tmp_path)
    assert digest(tmp_path, more='severe_means = "more than half of the lungs affected"\n', text=PUBLISHED) != (
        digest(tmp_path)
    )


def test_other_limit_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = digest(tmp_path)
    monkeypatch.setattr(contract, "SMALL_LUNGS_ML", 1900)
    assert digest(tmp_path) != usual


def test_other_severity_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, severity = digest(tmp_path), contract.Result.severity.fget
    flags_prone = property(lambda rule: "flags" if rule.reason is reasons.PRONE else severity(rule))
    monkeypatch.setattr(contract.Result, "severity", flags_prone)
    assert digest(tmp_path) != usual


def test_later_rules_refuse_nobody_and_leave_the_contract_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites of two versions can train together."""
    assert LATER and not any(reason.refuses for reason in LATER)
    usual, rules = digest(tmp_path), contract.contract
    monkeypatch.setattr(contract, "contract", lambda facts: [r for r in rules(facts) if r.reason not in LATER])
    assert digest(tmp_path) == usual


def test_additional_rule_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, rules = digest(tmp_path), contract.contract
    another = contract.Result(
        Reason("E_ANOTHER", "another rule", "None."), "HU", count=0, of=0, unit="series", is_met=False
    )
    monkeypatch.setattr(contract, "contract", lambda facts: [*rules(facts), another])
    assert digest(tmp_path) != usual


def test_site_with_chest_ct_only_has_the_digest_of_a_site_with_records(tmp_path: Path) -> None:
    """So it can take part in one run with hospitals that have labels, if a study needs none."""
    without = '[site]\nname = "{name}"\nunlabelled_patients = true\n'
    assert digest(tmp_path, text=without) == digest(tmp_path, "south")
    assert digest(tmp_path, "west", "[join]\nhorizon_days = 28\n", without) != digest(tmp_path, "east")
