"""Results of analysis as DICOM: segmentations, parametric maps and annotations of a slide."""
