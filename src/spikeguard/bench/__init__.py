"""Speed and memory, against the floor of this machine and against the frameworks that are installed."""
