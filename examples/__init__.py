"""What is built on the alignment, small enough to read."""
