"""Slides written in the formats of others."""
