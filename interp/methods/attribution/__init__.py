"""Gradients in place of interventions: estimates of effects, and shares of the output."""
