"""Many users at once: an engine on token ids, and the HTTP API that OpenAI's clients use."""
