"""Studies from their launch to what is measured of their models; and the demo."""
