"""Readers of this package for other packages: each module needs the package of its name."""
