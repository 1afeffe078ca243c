"""Animation: pictures that move."""
