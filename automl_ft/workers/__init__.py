"""Where trials run: worker processes that live for the whole search."""
