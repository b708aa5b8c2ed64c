"""Interpretation of DICOM headers: layout and placement of images, without frames or pixels."""
