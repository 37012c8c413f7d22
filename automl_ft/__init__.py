"""Hyperparameter search for fine-tuning pretrained models."""

__version__ = "0.1.0"
