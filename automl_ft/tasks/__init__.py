"""One file per task family: model head, encoding, loss, metrics."""
