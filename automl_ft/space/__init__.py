"""Search-space files, conditions and suggestion."""
