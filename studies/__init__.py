"""Studies: experiments that this repository publishes. They do not ship in the wheel."""
