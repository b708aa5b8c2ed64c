"""Frames asked for together, ahead of time, and kept as they came."""
