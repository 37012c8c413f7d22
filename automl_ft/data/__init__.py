"""From where the labelled rows lie to encoded batches: sources, columns, checks, splits, tokens."""
