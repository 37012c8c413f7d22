"""Metrics of predictions; NumPy and scikit-learn only."""
