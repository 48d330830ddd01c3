"""Many users at once: an engine on token ids."""
