"""Model bundles: a trained classifier as files."""
