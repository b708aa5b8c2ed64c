"""Objects in buckets and on HTTP servers."""
