"""What all network clients share."""
