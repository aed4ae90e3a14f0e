"""The base score of a CVSS 3 vector, by section 7 of the specification.

https://www.first.org/cvss/v3.1/specification-document
"""

import re

_VECTOR = re.compile(r"CVSS:3\.[01](?:/[A-Z]{1,3}:[A-Z])+")
_WEIGHTS = {
    "AV": {"N": 0.85, "A": 0.62, "L": 0.55, "P": 0.2},
    "AC": {"L": 0.77, "H": 0.44},
    "UI": {"N": 0.85, "R": 0.62},
    "C": {"H": 0.56, "L": 0.22, "N": 0.0},
    "I": {"H": 0.56, "L": 0.22, "N": 0.0},
    "A": {"H": 0.56, "L": 0.22, "N": 0.0},
}
_PRIVILEGES = {"U": {"N": 0.85, "L": 0.62, "H": 0.27}, "C": {"N": 0.85, "L": 0.68, "H": 0.5}}  # by scope


def base_score(vector: str) -> float | None:
    """Return the base score, 0 to 10, of a CVSS 3.0 or 3.1 vector; None for another kind of vector."""
    if not _VECTOR.fullmatch(vector):
        return None
    chosen = dict(part.split(":") for part in vector.split("/")[1:])
    try:
        weights = {name: values[chosen[name]] for name, values in _WEIGHTS.items()}
        scope = chosen["S"]
        privileges = _PRIVILEGES[scope][chosen["PR"]]
    except KeyError:
        return None
    harm = 1 - (1 - weights["C"]) * (1 - weights["I"]) * (1 - weights["A"])
    impact = 7.52 * (harm - 0.029) - 3.25 * (harm - 0.02) ** 15 if scope == "C" else 6.42 * harm
    if impact <= 0:
        return 0.0
    reach = 8.22 * weights["AV"] * weights["AC"] * privileges * weights["UI"]
    return _rounded_up(min((1.08 if scope == "C" else 1.0) * (impact + reach), 10.0))


def _rounded_up(score: float) -> float:
    """Round up to one decimal place, as appendix A of the specification does to avoid errors of floating point."""
    whole = round(score * 100_000)
    return whole / 100_000 if whole % 10_000 == 0 else (whole // 10_000 + 1) / 10
