"""Training on one machine: `config` says what a run is, `loop` runs it."""
