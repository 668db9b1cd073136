"""LabeledImages images: where they come from, how they are prepared, and in what order they are served."""
