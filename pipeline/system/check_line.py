"""Defines one line of `node check`."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from models.refusal import Refusal

Status = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Line:
    """The result of one check.

    `says` and `remedy` may be shown to anybody: they contain "…" instead of hosts, paths, names and counts. `detail`
    holds the exact figures, for the site's terminal and JSON. `private` is shown only on the site's own screen.
    """

    area: str
    name: str
    status: Status
    says: str
    remedy: str = ""
    detail: str = ""
    private: str = ""

    @property
    def exactly(self) -> str:
        """The text with its exact figures."""
        if "…" in self.says and self.detail:
            return self.detail
        return f"{self.says}: {self.detail}" if self.detail else self.says

    def to_json(self) -> dict[str, Any]:
        line = asdict(self)
        del line["private"]
        return line


def refused(area: str, name: str, refusal: Refusal) -> Line:
    """Make the line of a refusal; its words may be shown to anybody, its numbers may not."""
    words = {key: value if isinstance(value, str) else "…" for key, value in refusal.numbers.items()}
    says = refusal.reason.says.format(**words)
    return Line(
        area,
        name,
        "fail",
        f"{refusal.code}: {says}",
        refusal.remedy,
        detail="" if says == refusal.says else f"{refusal.code}: {refusal.says}",
        private=refusal.private,
    )
