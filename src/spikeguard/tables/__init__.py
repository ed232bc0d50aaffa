"""Networks by attacks, in one table."""
