"""Locating pretrained checkpoints and reading their tensors and image settings."""
