"""What a DICOM header says: no bytes of frames, no pixels."""
