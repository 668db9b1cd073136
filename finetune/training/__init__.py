"""Train state, steps and loops."""
