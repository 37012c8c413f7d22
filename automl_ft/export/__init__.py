"""What leaves the house: the best configuration, its model, a training script, a model card."""
