"""Measuring a classifier on labelled images."""
