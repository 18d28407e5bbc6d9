"""What merging changes in a model's maps and predictions, without labels."""
