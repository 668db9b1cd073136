"""Pretrained vision models in Flax Linen, and what turns them into classifiers."""
