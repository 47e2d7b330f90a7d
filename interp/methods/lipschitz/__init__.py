"""Lipschitz bounds: certified from above, measured from below, never confused."""
