"""Fetch chest CT from a hospital's PACS, over DICOMweb or DIMSE, and store it de-identified."""
