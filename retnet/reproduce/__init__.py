"""The paper's tables and figures, measured anew: its claims beside what is found here."""
