"""Causal interventions between two runs: what changes when an activation is put elsewhere."""
