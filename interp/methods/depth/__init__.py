"""How a model uses its depth: what each layer adds, and what is lost without it."""
