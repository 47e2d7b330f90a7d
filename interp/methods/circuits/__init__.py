"""Circuits: parts of a model that do a task alone, and how well they do it."""
