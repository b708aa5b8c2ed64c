"""Files on disk and their parts (PS3.10)."""
