"""Records: how results are written down. No torch here."""
