"""Text becomes documents, these become tokens, and tokens become batches: functions of a step."""
