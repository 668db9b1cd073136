"""Self-contained model bundles and predictions with them."""
