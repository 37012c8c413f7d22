"""One fine-tuning job: prepared data and a spec in, a result out. Knows nothing of Optuna."""
