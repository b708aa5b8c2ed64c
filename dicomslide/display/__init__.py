"""Presentation of slides: pictures, tables, plots and HTML."""
