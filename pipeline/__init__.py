"""What happens inside one hospital: DICOM to volume, PCR to label, cohort, training step, evaluation, scoring."""
