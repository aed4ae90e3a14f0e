"""Reads the hospital's records: laboratory results, outcomes, labels; joins them to scans.

CSV, HL7 v2 and FHIR R4 become one table of results. May import `system`. Begin with `join`.
"""
