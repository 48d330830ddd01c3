"""docs/annotated_retnet.py as a page: its text, its code, what the code prints, its figures."""

import re
from contextlib import redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib
import torch
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_NAME = "annotated_retnet"
_MARKDOWN = "# %% [markdown]\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Run the program, and add its page and its figures."""
    page, figures = rendered(Path(config.docs_dir) / f"{_NAME}.py")
    files.append(File.generated(config, f"{_NAME}.md", content=page))
    for name, picture in figures.items():
        files.append(File.generated(config, name, content=picture))
    return files


def rendered(path: Path) -> tuple[str, dict[str, bytes]]:
    """The page in Markdown, and its figures as PNG by name."""
    matplotlib.use("agg")
    source, parts, figures = path.read_text(), list[str](), dict[str, bytes]()
    variables: dict[str, Any] = {"__name__": "__main__"}
    dtype = torch.get_default_dtype()
    try:
        for match in re.finditer(r"^# %%.*?(?=^# %%|\Z)", source, re.MULTILINE | re.DOTALL):
            cell = match.group()
            if cell.startswith(_MARKDOWN):
                parts.append(re.sub(r"^# ?", "", cell.removeprefix(_MARKDOWN), flags=re.MULTILINE))
                continue
            first_line = source.count("\n", 0, match.start())
            printed = _run(cell, "\n" * first_line, path, variables)
            parts.append(_fenced(cell.partition("\n")[2], "python"))
            if printed:
                parts.append(_fenced(printed, "text"))
            for picture in _open_figures():
                name = f"{_NAME}-{len(figures) + 1}.png"
                figures[name] = picture
                parts.append(f"![{_NAME}, figure {len(figures)}]({name})\n")
    finally:
        torch.set_default_dtype(dtype)  # which the program changes
    return "\n".join(parts), figures


def _run(cell: str, lines_before: str, path: Path, variables: dict[str, Any]) -> str:
    """What a cell prints. An error names the line of the file."""
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(lines_before + cell, str(path), "exec"), variables)
    return printed.getvalue()


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.strip()}\n```\n"


def _open_figures() -> list[bytes]:
    from matplotlib import pyplot

    pictures = []
    for number in pyplot.get_fignums():
        to = BytesIO()
        pyplot.figure(number).savefig(to, dpi=144, metadata={"Software": None})
        pictures.append(to.getvalue())
    pyplot.close("all")
    return pictures
