"""Reasons why the PACS cannot be asked, or an image not stored."""

from models.refusal import Reason

PACS_SILENT = Reason(
    "E_PACS_SILENT",
    "the PACS does not answer, or broke off in the middle",
    "Check the address in [pacs] of site.toml, or in clinic.toml, the PACS and the network between. A command that is "
    "run again goes on; a clinic tries again by itself.",
)
PACS_AUTH = Reason(
    "E_PACS_AUTH",
    "the PACS does not let this node in",
    "Check user, password, token or AE title in [pacs] of site.toml, or in clinic.toml, with the PACS's administrator.",
)
PACS_UNTRUSTED = Reason(
    "E_PACS_UNTRUSTED",
    "no trusted TLS connection to the PACS can be made",
    "Check `ca_certificate` in [pacs] of site.toml, or in clinic.toml, that the PACS speaks TLS, that its certificate "
    "names this address and has not expired, and that ours is given where it asks for one.",
)
PACS_PROXY = Reason(
    "E_PACS_PROXY",
    "the proxy does not let this node through to the PACS",
    "Correct `proxy` in [pacs.dicomweb] of site.toml; leave it empty where the PACS is reached directly.",
)
PACS_ANSWER = Reason(
    "E_PACS_ANSWER",
    "the PACS gave an answer that was not foreseen",
    "Check that the address in [pacs] of site.toml, or in clinic.toml, is that of DICOMweb or DIMSE; the site's screen "
    "tells the answer.",
)
PACS_INCOMPLETE = Reason(
    "E_PACS_INCOMPLETE",
    "the PACS lists images of a series that it does not send",
    "Let the PACS's administrator check the series; it is fetched when the PACS sends all of it.",
)
PULL_RUNNING = Reason(
    "E_PULL_RUNNING",
    "another pull of this site is running",
    "Wait until it has ended; what it fetches is there for everybody.",
)
DISK = Reason(
    "E_DISK",
    "the site's folder cannot be written, or its disk has less than {gigabytes} GB left",
    "Free space on the disk, or lower `keep_free_gb` in [pacs.limits] of site.toml; then run the command again.",
)
PATIENT_DIFFERS = Reason(
    "E_PATIENT_DIFFERS",
    "the images name another patient than the PACS does",
    "The patient was merged or corrected: let the PACS write its changes into the images that it sends.",
)
PACS_SERVICE = Reason(
    "E_PACS_SERVICE",
    "the PACS does not offer this node what it needs: {service}",
    "Let the PACS's administrator allow it; C-GET and C-MOVE can stand in for each other (`retrieve` in site.toml).",
)
PACS_STORE = Reason(
    "E_PACS_STORE",
    "the PACS does not take the results, and will not when they are sent again: status {status}",
    "Show the PACS's administrator the status; when the PACS takes such files, send the answer again.",
)
PACS_NO_DELIVERY = Reason(
    "E_PACS_NO_DELIVERY",
    "the PACS was asked to send images to this node (C-MOVE), and none arrived",
    "Have the PACS's administrator register this node (AE title, host and port are on the site's screen) and send it "
    "a C-ECHO during a pull; open the firewalls between.",
)
PACS_RECEIVER = Reason(
    "E_PACS_RECEIVER",
    "the address on which this node receives images from the PACS cannot be opened",
    "Correct `receiver_host` and `receiver_port` in [pacs.dimse] of site.toml; another program may use the port.",
)
NO_PACS = Reason(
    "E_NO_PACS",
    "site.toml names no PACS",
    "Fill in the section [pacs] of site.toml, or go on with `fedthorax node ingest`: it reads the folder of [ct].",
)
