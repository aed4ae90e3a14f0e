"""Checks of laboratory and outcome files, or labels: whether they can be read, and their size."""

from collections.abc import Iterator

from pipeline.records.join import NO_RECORDS, Records
from pipeline.system.check_line import Line

AREA = "records"


def read_lines(records: Records) -> Iterator[Line]:
    """Check the records; the data contract counts the rows that were left out."""
    if records is NO_RECORDS:
        yield Line(AREA, "labels", "skip", "the site has chest CT only")
        return
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
    return Line(AREA, name, "fail", "can be read, but contains no usable row", remedy, detail)
