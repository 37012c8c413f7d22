"""The values that cross process borders; a leaf, standard library only."""
