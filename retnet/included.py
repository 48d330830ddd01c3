"""Where the trained model is that comes with the package. Imports nothing heavy."""

from pathlib import Path

INCLUDED_MODEL = Path(__file__).parent / "models" / "retnet-11m"
"""Folder of the trained model that comes with the package; its README.md says what it is."""
