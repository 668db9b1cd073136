"""Metrics of a classifier on labelled images."""
