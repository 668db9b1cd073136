"""A page in which people try a model on images of their own."""
