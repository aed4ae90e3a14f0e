"""Deletes what a site's feeds have sent about patients who withdrew: HL7 messages, FHIR resources, OMOP events.

The patients are those of the site's list of withdrawn patients. What comes about them later is not stored: the queue
and both fetches ask the same list.
"""

from dataclasses import dataclass

from pipeline.feeds.fhir_fetch import erase as erase_fhir
from pipeline.feeds.omop_fetch import erase_omop
from pipeline.feeds.result_queue import ResultQueue, queue_folder
from pipeline.records.laboratory.listener_settings import ListenerTable
from pipeline.site.folder import Site


@dataclass(frozen=True)
class Erased:
    """What was deleted. `messages`: deleted or shortened HL7 messages. `histories`: patients of the OMOP events."""

    messages: int
    resources: int
    histories: int


def erase_feeds(site: Site) -> Erased:
    """Delete all that feeds have sent about withdrawn patients. Repeat it after an error or a kill.

    Raises Refusal: E_FETCH_RUNNING, E_FETCH_DISK, E_TABLE_FILE, E_SITE_KEY; OSError.
    """
    table = ListenerTable(queue=queue_folder(site))
    return Erased(ResultQueue(site, table).erase(), erase_fhir(site), erase_omop(site))
