"""How a number is told: pages and pictures, from records only."""
