"""The subcommands of `retnet`. A module says what flags its command has and what it does with them.

None imports torch before it runs, so that every help page is there at once.
"""
