"""Finding pretrained checkpoints and reading their tensors."""
