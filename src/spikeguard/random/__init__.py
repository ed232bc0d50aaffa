"""Random numbers as a function of what they are for."""
