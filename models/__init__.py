"""What is learnt: networks, losses, calibration and the release format. Imports neither pipeline nor federation."""
