"""Distribution, applied from outside to a finished model: replicas, shards, heads, sequences."""
