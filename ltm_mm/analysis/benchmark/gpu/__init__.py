"""All measurements of a GPU in one go, each part in a process of its own."""
