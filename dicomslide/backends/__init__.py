"""Where bytes come from, and the way in from xarray."""
