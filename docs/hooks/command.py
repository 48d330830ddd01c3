"""What `retnet COMMAND --help` says, as a page."""

import os
import re
from contextlib import redirect_stdout, suppress
from io import StringIO

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from retnet.cli import main


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    overview = _printed("--help")
    commands = re.findall(r"^  (\w+)", overview.partition("commands:\n")[2], re.MULTILINE)
    sections = [
        f"## retnet {name}\n\n```text\n{_printed(name, '--help')}```\n" for name in commands
    ]
    page = "\n".join(["# The command", f"```text\n{overview}```\n", *sections])
    files.append(File.generated(config, "reference/command.md", content=page))
    return files


def _printed(*arguments: str) -> str:
    width, printed = os.environ.get("COLUMNS"), StringIO()
    os.environ["COLUMNS"] = "100"
    try:
        with redirect_stdout(printed), suppress(SystemExit):  # argparse ends so
            main(arguments)
    finally:
        os.environ.pop("COLUMNS")
        if width is not None:
            os.environ["COLUMNS"] = width
    return printed.getvalue()
