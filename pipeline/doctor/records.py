"""Laboratory and outcome files, or labels: whether they can be read, and how much there is in them."""

from collections.abc import Iterator

from pipeline.records.join import Records
from pipeline.system.check_line import Line

AREA = "records"


def read_lines(records: Records) -> Iterator[Line]:
    """What was left out is counted by the data contract."""
    if records.labels is not None:
        yield _line("labels", len(records.labels), f"{len(records.labels)} patients have labels")
        return
    results = sum(map(len, records.results.values()))
    yield _line("laboratory", results, f"{results} results of {len(records.results)} patients")
    yield _line("outcomes", len(records.outcomes), f"outcomes of {len(records.outcomes)} patients")


def _line(name: str, count: int, detail: str) -> Line:
    if count:
        return Line(AREA, name, "ok", "can be read", detail=detail)
    remedy = "Check the export, and the table of this name in site.toml."
    return Line(AREA, name, "fail", "can be read, but holds nothing that can be used", remedy, detail)
