"""Pretrained models: loading, the layer map of an architecture, freezing, dropout."""
