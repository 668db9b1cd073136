"""Runs that another system starts."""
