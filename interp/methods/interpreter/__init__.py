"""Linear interpreters: a network as the matrix F(x₀) and the remainder r(x₀) at one input."""
