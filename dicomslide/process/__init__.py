"""Cached values, threads, forks and warnings of a process."""
