"""Labeled images: where they come from, how they are split, prepared and batched."""
