"""What a model must recall of what it has just read: synthetic tasks, and training on them."""
