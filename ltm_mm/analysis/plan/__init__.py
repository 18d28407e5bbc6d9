"""The plan of the least error within a time budget."""
