"""One thing that the doctor looked at."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from models.refusal import Refusal

Status = Literal["ok", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Line:
    """How one thing is.

    `says` and `remedy` may be shown to anybody: no host, path, name or count; "…" stands for one. `detail` holds the
    exact figures, for the site's terminal and JSON. `private` is for the site's own screen alone.
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
        """What it says with its figures."""
        if "…" in self.says and self.detail:
            return self.detail
        return f"{self.says}: {self.detail}" if self.detail else self.says

    def to_json(self) -> dict[str, Any]:
        line = asdict(self)
        del line["private"]
        return line


def refused(area: str, name: str, refusal: Refusal) -> Line:
    """The line of something that cannot be used; words of the refusal may be shown to anybody, numbers may not."""
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
