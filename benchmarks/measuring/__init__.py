"""What the benchmarks share: rows, configurations, both sides, figures."""
