"""Pixels by index, lazily."""
