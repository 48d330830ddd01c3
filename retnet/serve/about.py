"""What a server tells of itself and its tokenizer: models, health, metrics, tokens."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from retnet import __version__
from retnet.serve.asking import Server, require_model
from retnet.serve.errors import ApiError
from retnet.serve.protocol import DetokenizeRequest, TokenizeRequest
from retnet.serve.service import Loaded, Phase


def about_router(server: Server) -> APIRouter:
    """The routes."""
    router = APIRouter()
    service = server.service

    @router.get("/health", summary="200 when ready, else 503 and why")
    async def health() -> Response:
        status = 200 if service.phase == Phase.READY else 503
        return JSONResponse({"status": service.phase.value}, status_code=status)

    @router.get("/version", summary="The server's version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @router.get("/metrics", summary="For Prometheus")
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/models", summary="The model that is served")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service.loaded, server)]}

    @router.get("/v1/models/{model_id:path}", summary="The model that is served")
    async def model(model_id: str) -> dict[str, Any]:
        require_model(model_id, service.loaded)
        return _model(service.loaded, server)

    @router.post("/tokenize", summary="A text's tokens")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        loaded = service.loaded
        ids = _special(loaded, body.prompt) or await loaded.encode(body.prompt, begins=False)
        if body.add_special_tokens and loaded.tokenizer.bos_id is not None:
            ids = [loaded.tokenizer.bos_id, *ids]
        most = server.service.config.max_prompt_tokens
        return {"tokens": ids, "count": len(ids), "max_model_len": most}

    @router.post("/detokenize", summary="The text of some tokens")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        loaded = service.loaded
        size = loaded.decoder.vocab_size
        if any(not 0 <= token < size for token in body.tokens):
            raise ApiError(400, f"token ids must be in [0, {size})", param="tokens")
        return {"prompt": loaded.tokenizer.decode(body.tokens)}

    @router.get("/tokenizer_info", summary="Special tokens, and the chat template")
    async def tokenizer_info() -> dict[str, Any]:
        return _tokenizer(service.loaded)

    return router


def _model(loaded: Loaded, server: Server) -> dict[str, Any]:
    config = loaded.decoder.model.config
    stats = loaded.engine.stats()
    return {
        "id": loaded.id,
        "object": "model",
        "created": loaded.created,
        "owned_by": "retnet",
        "retnet": {
            "num_layers": config.num_layers,
            "d_model": config.d_model,
            "num_parameters": sum(each.numel() for each in loaded.decoder.model.parameters()),
            "vocab_size": config.vocab_size,
            "state_bytes": stats.slot_bytes,
            "num_slots": stats.num_slots,
            "dtype": str(loaded.decoder.dtype).removeprefix("torch."),
            "has_chat_template": loaded.template is not None,
            "max_prompt_tokens": server.service.config.max_prompt_tokens,
        },
    }


def _special(loaded: Loaded, text: str) -> list[int]:
    """The token whose name a text is, nothing beside it: clients ask so for the ids of bos and eos.

    Within other text it is text.
    """
    return [each.id for each in loaded.tokenizer.special_tokens if each.name == text][:1]


def _tokenizer(loaded: Loaded) -> dict[str, Any]:
    """As far as lm-evaluation-harness and others ask for it."""
    tokenizer = loaded.tokenizer
    names = {each.id: each.name for each in tokenizer.special_tokens}
    named = {
        f"{name}_token": None if token is None else names.get(token)
        for name, token in (
            ("bos", tokenizer.bos_id),
            ("eos", tokenizer.eos_id),
            ("pad", tokenizer.pad_id),
        )
    }
    template = None if loaded.template is None else loaded.template.source
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": tokenizer.vocab_size,
        "add_bos_token": tokenizer.bos_id is not None,
        **named,
        "chat_template": template,
    }
