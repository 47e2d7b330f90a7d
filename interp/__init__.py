"""interp: a workbench for mechanistic interpretability."""
