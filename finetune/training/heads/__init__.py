"""Heads that are fitted in seconds to features that were computed before, as pure functions."""
