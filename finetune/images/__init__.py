"""From image files to pixels. Imports no JAX, so that decoding processes start fast and touch no accelerator."""
