"""Pages and pictures, from records only."""
