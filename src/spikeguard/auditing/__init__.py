"""Honest evaluation: suites of attacks, witnesses, records."""
