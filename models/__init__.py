"""Defines networks, losses, calibration and the release format; imports neither `pipeline` nor `federation`."""
