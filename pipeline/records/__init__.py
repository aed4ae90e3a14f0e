"""Reads the hospital's records (laboratory results, outcomes, labels) and joins them to scans.

Results from CSV, HL7 v2 and FHIR R4 become one table. May import `system`. Begin with `join`.
"""
