"""Observable propagation: what an observable reads further back, from the weights."""
