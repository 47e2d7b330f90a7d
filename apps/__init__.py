"""Applications over the public page of ``interp``."""
