"""Pretrained vision models in Flax Linen, and the surgery that turns them into classifiers."""
