"""A synthetic PACS in this process, whose behaviour a test can change."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    MRImageStorage,
    Verification,
)

from pipeline.imaging.functional_groups import CT_CLASSES
from pipeline.pacs.association import FIND, GET, MOVE, keep_answers
from pipeline.pacs.receiver import TRANSFER_SYNTAXES, guard
from tests.helpers.dicom_files import ct_slice

PACS_TITLE, OUR_TITLE = "FAKEPACS", "FEDTHORAX"
Answers = Callable[[Event], Iterator[tuple[int, Dataset | None]]]


@dataclass
class FakePacs:
    """Holds studies with their series (for C-FIND) and `images` of one series; records the requests.

    `find`, `get` and `move` replace the usual responses. `offers`: the services it supports.
    """

    studies: list[tuple[Dataset, list[Dataset]]] = field(default_factory=list)
    images: list[Dataset] = field(default_factory=list)
    find: Answers | None = None
    get: Answers | None = None
    move: Answers | None = None
    receiver_port: int = 0
    tls: Any = None
    offers: Sequence[UID] = (FIND, GET, MOVE, Verification)
    query_syntax: UID = ExplicitVRLittleEndian
    sends_ct: bool = True  # over C-GET
    asked: list[Dataset] = field(default_factory=list)
    port: int = 0

    @contextmanager
    def running(self) -> Iterator["FakePacs"]:
        entity = AE(ae_title=PACS_TITLE)
        entity.require_called_aet = True
        entity.require_calling_aet = [OUR_TITLE]
        entity.network_timeout = entity.dimse_timeout = entity.acse_timeout = 60
        for service in self.offers:
            entity.add_supported_context(service, self.query_syntax)
        for image_class in (*CT_CLASSES, MRImageStorage):
            for syntax in TRANSFER_SYNTAXES:
                entity.add_requested_context(image_class, syntax)
                entity.add_supported_context(image_class, syntax, scu_role=True, scp_role=self.sends_ct)
        usual_associate = entity.associate

        def associate(*arguments: Any, **options: Any) -> Association:
            association = usual_associate(*arguments, **options)
            keep_answers(association)
            return association

        entity.associate = associate  # type: ignore[method-assign]
        self.entity = entity
        server = entity.start_server(
            ("127.0.0.1", 0),
            block=False,
            ssl_context=self.tls,
            evt_handlers=[
                (evt.EVT_CONN_OPEN, guard(60)),
                (evt.EVT_C_FIND, lambda event: self._asked(event, self.find or self.usual_find)),
                (evt.EVT_C_GET, lambda event: self._asked(event, self.get or self.usual_get)),
                (evt.EVT_C_MOVE, lambda event: self._asked(event, self.move or self.usual_move)),
            ],
        )
        assert server is not None
        self.port = server.server_address[1]
        try:
            yield self
        finally:
            for association in server.active_associations:
                if association.is_established:
                    association.abort()
            server.shutdown()

    def _asked(self, event: Event, answers: Answers) -> Iterator[tuple[int, Dataset | None]]:
        self.asked.append(event.identifier)
        yield from answers(event)

    def usual_find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        key = event.identifier
        for study, series in self.studies:
            if key.QueryRetrieveLevel == "STUDY" and _fits(study, key):
                yield 0xFF00, study
            if key.QueryRetrieveLevel == "SERIES" and study.get("StudyInstanceUID") == key.StudyInstanceUID:
                for each in series:
                    yield 0xFF00, each
        if key.QueryRetrieveLevel == "IMAGE":
            for image in self.images:
                yield 0xFF00, dataset(SOPInstanceUID=image.SOPInstanceUID, SOPClassUID=image.SOPClassUID)

    def _selected(self, key: Dataset) -> list[Dataset]:
        wanted = key.get("SOPInstanceUID") or []
        wanted = [wanted] if isinstance(wanted, str) else wanted
        return [image for image in self.images if not wanted or image.SOPInstanceUID in wanted]

    def usual_get(self, event: Event) -> Iterator[Any]:
        images = self._selected(event.identifier)
        yield len(images)
        for image in images:
            yield 0xFF00, image

    def usual_move(self, event: Event) -> Iterator[Any]:
        yield "127.0.0.1", self.receiver_port
        yield from self.usual_get(event)


def _fits(study: Dataset, key: Dataset) -> bool:
    day, span = study.get("StudyDate", ""), key.get("StudyDate", "")
    first, dash, last = span.partition("-")
    in_time = first <= day <= (last or "9") if dash else span in ("", day)
    if minutes := key.get("StudyTime"):
        first, _, last = minutes.partition("-")
        in_time = in_time and first <= study.get("StudyTime", "") <= (last or "9")
    return in_time and key.get("AccessionNumber", "") in ("", study.get("AccessionNumber", ""))


def images(count: int, *, syntax: UID = ExplicitVRLittleEndian, size: int = 8, **attributes: Any) -> list[Dataset]:
    """Synthetic CT images of `size` x `size` pixels of one series, complete with file meta."""
    made = []
    for index in range(count):
        image = ct_slice(np.full((size, size), index), position_mm=(0, 0, index), **attributes)
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if syntax.is_encapsulated:
            image.compress(syntax, generate_instance_uid=False)
        made.append(image)
    return made


def dataset(**attributes: Any) -> Dataset:
    """A dataset with these attributes."""
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made
