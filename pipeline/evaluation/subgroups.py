"""The closed list of patient subgroups for metrics, and which of them may be reported.

It imports nothing heavy, because the gateway uses it too.
"""

from collections.abc import Iterable, Mapping

_SEXES = {"F": "female", "M": "male"}
_SCANNERS = {"SIEMENS": "siemens", "GE": "ge", "PHILIPS": "philips", "CANON": "canon"}
_OTHER = "other_scanner"
_AGES_FROM = ((70, "from_70"), (50, "50_to_69"), (0, "under_50"))  # years
# A patient is in at most one group of each kind.
_KINDS = (
    tuple(_SEXES.values()),
    ("under_50", "50_to_69", "from_70"),
    (*_SCANNERS.values(), _OTHER),
)
GROUPS = tuple(group for kind in _KINDS for group in kind)

Classes = tuple[int, int]  # numbers of patients whose label is false and true


def groups_of(age_years: float | None, sex: str | None, manufacturer: str) -> set[str]:
    """Return the groups of one patient: at most one each by sex, age and scanner."""
    groups = {_SEXES[sex]} if sex in _SEXES else set()
    if age_years is not None:
        groups |= {next(name for least, name in _AGES_FROM if age_years >= least)}
    if manufacturer:
        groups |= {_SCANNERS.get(manufacturer, _OTHER)}
    return groups


def groups_to_report(everybody: Classes, groups: Mapping[str, Classes], *, min_patients: int) -> set[str]:
    """Return the groups whose figures may leave the site.

    `everybody`: the classes of all patients with the label; `groups`: the classes of each group. Both classes of a
    group must reach `min_patients`, and so must those of the patients beside the reported groups of the same kind,
    unless there are none: subtracting the reported groups from all patients would reveal a smaller rest. If the rest is
    too small, the smallest group joins it (complementary suppression: Hundepool et al., Statistical Disclosure Control,
    2012, ch. 4).
    """
    told: set[str] = set()
    for kind in _KINDS:
        large = sorted(
            (group for group in kind if min(groups.get(group, (0, 0))) >= min_patients), key=groups.__getitem__
        )
        rest = _without(everybody, (groups[group] for group in large))
        if large and max(rest) > 0 and min(rest) < min_patients:
            del large[0]
        told.update(large)
    return told


def sexes_are_large(everybody: Classes, groups: Mapping[str, Classes], *, min_patients: int) -> bool:
    """Whether both classes of each sex reach `min_patients`, as far as there are such patients.

    Otherwise the AUROC of age and sex would tell how far the classes differ in the share of the smaller sex.
    """
    sexes = [groups.get(sex, (0, 0)) for sex in _KINDS[0]]
    parts = (*sexes, _without(everybody, sexes))
    return all(max(part) <= 0 or min(part) >= min_patients for part in parts)


def _without(everybody: Classes, groups: Iterable[Classes]) -> Classes:
    negative, positive = everybody
    for of_group in groups:
        negative, positive = negative - of_group[0], positive - of_group[1]
    return negative, positive
