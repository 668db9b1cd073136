"""A run's folder: what is in it, how it comes into being, and who may write there."""
