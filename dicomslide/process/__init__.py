"""What a process keeps, and how it does several things at once."""
