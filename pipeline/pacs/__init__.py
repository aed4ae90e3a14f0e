"""Fetches chest CT from a hospital's PACS, over DICOMweb or DIMSE, and stores it without names."""
