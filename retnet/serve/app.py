"""The server as an application: routes, and what happens when they fail."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp

from retnet import __version__
from retnet.serve.about import about_router
from retnet.serve.asking import Server
from retnet.serve.chat import chat_router
from retnet.serve.completions import completion_router
from retnet.serve.config import ServeConfig
from retnet.serve.errors import ApiError
from retnet.serve.limits import Limits
from retnet.serve.metrics import Metrics
from retnet.serve.page import add_page
from retnet.serve.service import Service
from retnet.serve.session_routes import session_router


def make_app(service: Service, *, loads: bool = True) -> FastAPI:
    """The application of a service.

    loads: whether the application loads the model when it starts, and ends it when it stops;
        otherwise whoever made the service does.
    """
    metrics = Metrics(service)
    app = FastAPI(
        title="retnet",
        version=__version__,
        summary="A retentive network behind OpenAI's HTTP API, with a state of constant size",
        lifespan=_lifespan(service) if loads else None,
        docs_url=None,  # both fetch their scripts from elsewhere
        redoc_url=None,
        responses={400: {"description": "What is wrong, in OpenAI's shape"}},
    )
    server = Server(service, metrics)
    app.include_router(completion_router(server))
    app.include_router(chat_router(server))
    app.include_router(session_router(lambda: service.loaded.sessions))
    app.include_router(about_router(server))
    add_page(app)
    _handle_errors(app)
    app.add_middleware(lambda inner: within_limits(inner, service.config, metrics.count_response))
    return app


def within_limits(
    app: ASGIApp, config: ServeConfig, count_response: Callable[[int], None]
) -> ASGIApp:
    """An application that bears with clients as a configuration says, and with other web pages."""
    limited = Limits(app, config, count_response)
    if not config.cors_origins:
        return limited
    return CORSMiddleware(
        limited, allow_origins=list(config.cors_origins), allow_methods=["*"], allow_headers=["*"]
    )


def _lifespan(service: Service) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.load()
        try:
            yield
        finally:
            await service.close()

    return lifespan


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def known(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return _response(error)

    @app.exception_handler(RequestValidationError)
    async def wrong_body(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _response(_validation(error))

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, ApiError):  # raised while the body was read
            return _response(error.__cause__)
        response = _response(ApiError(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unexpected(_: Request, __: Exception) -> Response:
        return _response(
            ApiError(500, "something in the server broke; its log says what", kind="server_error")
        )


def _response(error: ApiError) -> Response:
    return Response(error.encoded(), status_code=error.status, headers=error.headers())


def _validation(error: RequestValidationError) -> ApiError:
    """What is wrong with a body first."""
    first = error.errors()[0]
    place = [str(each) for each in first["loc"] if each != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json")
    param = place[0] if place else None
    where = ".".join(place[:4]) or "the body"
    return ApiError(400, f"{where}: {first['msg']}", param=param)
