"""DICOMweb servers (PS3.18)."""
