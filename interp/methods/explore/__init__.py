"""Short methods that answer while one looks: patterns, next tokens, a pair, a cell, a head."""
