"""The closed list of patient subgroups for metrics. It imports nothing heavy, because the gateway uses it too."""

_SEXES = {"F": "female", "M": "male"}
_SCANNERS = {"SIEMENS": "siemens", "GE": "ge", "PHILIPS": "philips", "CANON": "canon"}
_OTHER = "other_scanner"
_AGES_FROM = ((70, "from_70"), (50, "50_to_69"), (0, "under_50"))  # years
GROUPS = (*_SEXES.values(), "under_50", "50_to_69", "from_70", *_SCANNERS.values(), _OTHER)


def groups_of(age_years: float | None, sex: str | None, manufacturer: str) -> set[str]:
    """Return the groups of one patient: at most one each by sex, age and scanner."""
    groups = {_SEXES[sex]} if sex in _SEXES else set()
    if age_years is not None:
        groups |= {next(name for least, name in _AGES_FROM if age_years >= least)}
    if manufacturer:
        groups |= {_SCANNERS.get(manufacturer, _OTHER)}
    return groups
