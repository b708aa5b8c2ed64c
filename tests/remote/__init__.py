"""Tests of slides in buckets, on HTTP servers and in archives."""
