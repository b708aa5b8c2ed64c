"""What a slide consists of."""
