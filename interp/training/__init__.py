"""Training: the recipes that make the shipped models. ``python -m interp.training NAME``."""
