"""Trackers: TensorBoard, Trackio, Weights & Biases, MLflow, or one of your own."""
