"""Two models, two layers, two checkpoints, held side by side."""
