"""The site: built strictly, complete in itself, its program run."""

import os
import re
import subprocess
import sys
import traceback
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from mkdocs.exceptions import PluginError

import retnet

ROOT = Path(retnet.__file__).parent.parent
ENVIRONMENT = {
    **os.environ,
    "NO_MKDOCS_2_WARNING": "1",
    "PYTHONWARNINGS": "error::UserWarning:docs",
}


def hook(name: str) -> ModuleType:
    """A module of docs/hooks, as mkdocs loads it."""
    spec = spec_from_file_location(name, ROOT / "docs/hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_site(tmp_path: Path) -> None:
    """A warning, such as of a dead link, is an error; so is an assertion in the paper."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for page in tmp_path.rglob("*.html"):
        check_that_nothing_is_fetched(page.read_text())
    check_paper(tmp_path)
    check_first_page(tmp_path)
    check_reference(tmp_path / "reference")


def check_that_nothing_is_fetched(html: str) -> None:
    """No script, style, font or picture of another host: links to read are all that leads away."""
    tags = re.findall(r"<(?:script|img|link|iframe|source)\b[^>]*>", html)
    assert [tag for tag in tags if re.search(r"(?:src|href)=[\"']?(?:https?:)?//", tag)] == []
    assert "http" not in "".join(re.findall(r"<style>(.*?)</style>", html, re.DOTALL))


def check_paper(site: Path) -> None:
    """Its formulas are drawn, its figures are there, and what it prints."""
    html = (site / "annotated_retnet.html").read_text()
    assert "arithmatex" not in html
    assert html.count("<math") > 50
    pictures = re.findall(r'<img [^>]*src="([^"]+)"', html)
    assert len(pictures) == 4
    assert all((site / name).stat().st_size > 10_000 for name in pictures)
    assert "largest error of each chunk" in html


def check_first_page(site: Path) -> None:
    """It is the README, and what that links to is in the site."""
    html = (site / "index.html").read_text()
    assert 'src="images/decoding.png"' in html
    assert 'href="annotated_retnet.html"' in html
    script = "benchmarks/bench_decoding.py"
    assert f'href="{script}"' in html
    assert (site / script).read_bytes() == (ROOT / script).read_bytes()


def check_reference(folder: Path) -> None:
    """It has every public name, and the help of every command."""
    html = "".join(page.read_text() for page in folder.glob("*.html"))
    assert [name for name in retnet.__all__ if f'.{name}"' not in html] == []
    assert (folder / "command.html").read_text().count("usage: retnet ") == 12  # one is of all


def test_a_false_statement_ends_it(tmp_path: Path) -> None:
    """The error names the line of the program."""
    program = tmp_path / "paper.py"
    program.write_text("# %% [markdown]\n# # Title\n\n# %%\nx = 1\n\n# %%\nassert x == 2\n")
    with pytest.raises(AssertionError) as raised:
        hook("annotated").rendered(program)
    last = traceback.extract_tb(raised.tb)[-1]
    assert (last.filename, last.lineno) == (str(program), 8)


def test_text_code_and_what_it_prints(tmp_path: Path) -> None:
    program = tmp_path / "paper.py"
    program.write_text("# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nprint(6 * 7)\n")
    page, figures = hook("annotated").rendered(program)
    assert page.split("\n\n") == [
        "# Title",
        "Text.",
        "\n```python\nprint(6 * 7)\n```",
        "```text\n42\n```\n",
    ]
    assert figures == {}


def test_a_link_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"README.md links to 'lost.md', and there is no file"):
        hook("repository")._outside(tmp_path, "README.md", "[x](lost.md)")
