"""The page at `/`: static files, under a policy that lets them use this server and no other."""

from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import PurePath

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
}

_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # Browsers keep a file but ask each time whether it is still the one, so no two versions mix.
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    content_type: str

    @property
    def tag(self) -> str:
        return f'"{sha256(self.content).hexdigest()[:20]}"'


def _read_files() -> dict[str, _File]:
    return {
        entry.name: _File(entry.read_bytes(), _CONTENT_TYPES[PurePath(entry.name).suffix])
        for entry in files("retnet.serve").joinpath("static").iterdir()
        if PurePath(entry.name).suffix in _CONTENT_TYPES
    }


def _answer(file: _File, request: Request) -> Response:
    headers = {**_HEADERS, "etag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.content_type)


def add_page(app: FastAPI) -> None:
    """Serve the page at `/` and what it is made of at `/static/{name}`; both are read here, once.

    They hold nothing of anybody's, so they need no API key; the page asks its user for one when
    the server does.
    """
    static = _read_files()

    async def page(request: Request) -> Response:
        return _answer(static["index.html"], request)

    async def static_file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in static:
            raise HTTPException(404, f"the page has no file {name!r}")
        return _answer(static[name], request)

    # Routes of starlette's, which answer HEAD as well and stay out of the API's description.
    app.add_route("/", page, include_in_schema=False)
    app.add_route("/static/{name}", static_file, include_in_schema=False)
