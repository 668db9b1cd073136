"""Image files to pixels. Free of JAX, below models and data."""
