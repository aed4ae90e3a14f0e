"""Reasons why the PACS cannot be queried, or why an image is not stored."""

from models.refusal import Reason

PACS_SILENT = Reason(
    "E_PACS_SILENT",
    "the PACS does not respond in time, or closed the connection while it sent something",
    "Check the network and the firewalls between this machine and the PACS, then the address in [pacs] of site.toml or "
    "in clinic.toml. Run a command again and it continues; a clinic retries automatically.",
)
PACS_NAME = Reason(
    "E_PACS_NAME",
    "the host name of the PACS cannot be resolved",
    "Correct the host in [pacs] of site.toml or in clinic.toml, or this machine's name server. An IP address works.",
)
PACS_REFUSED = Reason(
    "E_PACS_REFUSED",
    "the PACS's machine answers, but nothing accepts connections at this port",
    "Correct the port in [pacs] of site.toml or in clinic.toml. Check that the PACS runs and that its firewall admits "
    "this machine.",
)
PACS_CLOSED = Reason(
    "E_PACS_CLOSED",
    "the PACS accepts the connection and closes it without an answer",
    "Ask the PACS's administrator to register this node's AE title (`calling_aet`) and address. Check that the port is "
    "the one for DICOM, and whether the PACS wants TLS. Run the command again and it continues.",
)
PACS_AUTH = Reason(
    "E_PACS_AUTH",
    "the PACS denies this node access",
    "Check user, password, token or AE title in [pacs] of site.toml or in clinic.toml, together with the PACS's "
    "administrator.",
)
PACS_UNTRUSTED = Reason(
    "E_PACS_UNTRUSTED",
    "a trusted TLS connection to the PACS cannot be established",
    "Check `ca_certificate` in [pacs] of site.toml or in clinic.toml. Check that the PACS uses TLS, and that its "
    "certificate names this address and has not expired. If the PACS requires a client certificate, configure one.",
)
PACS_PROXY = Reason(
    "E_PACS_PROXY",
    "the proxy refuses this node's connection to the PACS",
    "Correct `proxy` in [pacs.dicomweb] of site.toml or of clinic.toml. Leave it empty if the PACS is reached "
    "directly.",
)
PACS_ANSWER = Reason(
    "E_PACS_ANSWER",
    "the PACS gave an unexpected answer",
    "Check that the address in [pacs] of site.toml or in clinic.toml is the address of DICOMweb or DIMSE. The site's "
    "screen shows the answer.",
)
PACS_TRUNCATED = Reason(
    "E_PACS_TRUNCATED",
    "the PACS returned only the first {results} results of a search, and cannot be asked for the others",
    "Ask the PACS's administrator to raise its maximum, or to make it follow StudyTime, or `limit` and `offset` "
    "(QIDO-RS). Or search for less: fewer days or accession numbers in [pacs.filters]. Or change `protocol`.",
)
PACS_INCOMPLETE = Reason(
    "E_PACS_INCOMPLETE",
    "the PACS lists images of a series but does not send them",
    "Ask the PACS's administrator to check the series. It is fetched as soon as the PACS sends all images.",
)
PULL_RUNNING = Reason(
    "E_PULL_RUNNING",
    "another pull of this site is running",
    "Wait until it has ended. All of the site's commands use the images that it fetches.",
)
DISK = Reason(
    "E_DISK",
    "the site's folder is not writable, or its disk has less than {gigabytes} GB left",
    "Free space on the disk, or lower `keep_free_gb` in [pacs.limits] of site.toml or of clinic.toml. Then try again.",
)
PATIENT_DIFFERS = Reason(
    "E_PATIENT_DIFFERS",
    "the images name a different patient than the PACS",
    "The patient was merged or corrected. Configure the PACS to write such changes into the images that it sends.",
)
PACS_SERVICE = Reason(
    "E_PACS_SERVICE",
    "the PACS does not offer this node a required service: {service}",
    "Ask the PACS's administrator to allow it. C-GET and C-MOVE can replace each other (`retrieve` in site.toml "
    "or in clinic.toml).",
)
PACS_STORE = Reason(
    "E_PACS_STORE",
    "the PACS rejects the results permanently: status {status}",
    "Show the status to the PACS's administrator. When the PACS accepts such files, send the answer again.",
)
PACS_NO_DELIVERY = Reason(
    "E_PACS_NO_DELIVERY",
    "the PACS was asked to send images to this node (C-MOVE), but none arrived",
    "Ask the PACS's administrator to register this node (the site's screen shows AE title, host and port) and to "
    "send it a C-ECHO during a pull. Open the firewalls between the two.",
)
PACS_RECEIVER = Reason(
    "E_PACS_RECEIVER",
    "the address where this node receives images from the PACS cannot be opened",
    "Correct `receiver_host` and `receiver_port` in [pacs.dimse] of site.toml or of clinic.toml. Another program "
    "may use the port.",
)
NO_PACS = Reason(
    "E_NO_PACS",
    "site.toml names neither a PACS nor a FHIR server nor an OMOP database",
    "Fill in [pacs], [fhir] or [omop] of site.toml, or continue with `fedthorax node ingest`: it reads the files.",
)
PACS_CRITERIA = Reason(
    "E_PACS_CRITERIA",
    "the search contains no criterion that the PACS can use",
    "Give a patient ID or an accession number, without * ? or backslash. Or give a first and a last day, at most a "
    "month apart.",
)
PACS_UID = Reason(
    "E_PACS_UID",
    "the study or the series is not given as a valid UID",
    "Copy both UIDs from the list of the PACS's series.",
)
PACS_NO_SERIES = Reason(
    "E_PACS_NO_SERIES",
    "the PACS has no CT images of this series",
    "Search again: the series may have been moved or deleted, or it may be a report or another kind of series.",
)
SERIES_SIZE = Reason(
    "E_SERIES_SIZE",
    "the series has more than {images} images or {gigabytes} GB",
    "Choose a reconstruction that covers only the chest.",
)
# A later try may succeed without any change here.
MAY_PASS = frozenset({PACS_SILENT, PACS_NAME, PACS_REFUSED, PACS_CLOSED})
