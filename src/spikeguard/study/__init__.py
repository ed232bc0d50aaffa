"""Recipes, the demo."""
