"""What the residual stream says when it is read early."""
