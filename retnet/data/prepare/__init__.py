"""Text of many kinds becomes prepared tokens (`data.shards`): `run` does it, `config` says how."""
