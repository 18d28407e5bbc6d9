"""What is validated before training: options, data sets, labels, heads and outputs."""
