"""The clinician's page and its API: a queue of scans, their answers, and the delivery to the PACS."""
