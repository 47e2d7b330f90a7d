"""Side-by-side timings against other tools; times are reported, never asserted in a test."""
