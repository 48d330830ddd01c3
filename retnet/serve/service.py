"""What a server serves: a model made ready, its tokenizer, its engine and its sessions."""

import asyncio
import gc
import logging
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import torch

from retnet.checkpoint import load_checkpoint
from retnet.config import ModelConfig
from retnet.data.chat_template import ChatTemplate
from retnet.data.pretrained import PretrainedTokenizer, load_any_tokenizer
from retnet.data.tokenizer import ByteTokenizer
from retnet.decoding import Decoder
from retnet.device import find_device, find_dtype
from retnet.serve.config import ServeConfig
from retnet.serve.engine import Engine, EngineStats
from retnet.serve.errors import ApiError
from retnet.serve.sessions import SessionStore
from retnet.serve.worker import AsyncEngine
from retnet.serve.writing import unavailable
from retnet.text import document_ids

_log = logging.getLogger(__name__)

# A text of so many characters is encoded in a thread: the event loop has others to serve.
_LONG_TEXT = 20_000


class Phase(Enum):
    """How far a server has come."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"  # what runs is finished, nothing new is taken


@dataclass(frozen=True)
class About:
    """What there is to tell of a model at work.

    most_state_bytes: of a session's file.
    """

    id: str
    model: ModelConfig
    dtype: str
    kernel_name: str
    why_not_native: str | None
    stats: EngineStats
    most_state_bytes: int


@dataclass(frozen=True)
class Loaded:
    """A model at work. created: when it was loaded, in unix seconds."""

    id: str
    tokenizer: ByteTokenizer | PretrainedTokenizer
    template: ChatTemplate | None
    engine: AsyncEngine
    sessions: SessionStore
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def decoder(self) -> Decoder:
        """Its weights."""
        return self.engine.engine.decoder

    def about(self) -> About:
        """What there is to tell of it."""
        return About(
            self.id,
            self.decoder.model.config,
            str(self.decoder.dtype).removeprefix("torch."),
            self.decoder.kernel_name,
            self.decoder.why_not_native,
            self.engine.stats(),
            self.sessions.format.most_bytes,
        )

    async def encode(self, text: str, *, begins: bool = True) -> list[int]:
        """The tokens of a text, of a document's beginning or of what goes on; ApiError if none."""
        try:
            if len(text) < _LONG_TEXT:
                return self._encode(text, begins)
            return await asyncio.to_thread(self._encode, text, begins)
        except ValueError as error:
            raise ApiError(400, str(error)) from None

    def _encode(self, text: str, begins: bool) -> list[int]:
        if begins:
            return document_ids(self.tokenizer, text)
        return self.tokenizer.encode_within(text)


class Service:
    """A model that is loaded, serves, and goes.

    directory: that of the checkpoint.
    """

    def __init__(self, directory: str | Path, config: ServeConfig) -> None:
        self.directory, self.config = Path(directory), config
        self.phase = Phase.LOADING
        self._loaded: Loaded | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether there is a model at work."""
        return self._loaded is not None

    @property
    def loaded(self) -> Loaded:
        """The model at work; ApiError 503 while it loads."""
        if self._loaded is None:
            raise unavailable("the model is still being loaded")
        return self._loaded

    def open(self) -> Loaded:
        """The model, for something new; ApiError 503 while it loads and when it is about to go."""
        if self.phase == Phase.DRAINING:
            raise unavailable("the server is about to stop")
        return self.loaded

    async def load(self) -> None:
        """Make it ready. Raises what `retnet.checkpoint.load_checkpoint` does."""
        loaded = await asyncio.to_thread(_load, self.directory, self.config)
        # What has been loaded stays; looking through it would stop all for half a second.
        gc.collect()
        gc.freeze()
        loaded.engine.start()
        self._loaded = loaded
        if self.phase == Phase.LOADING:
            self.phase = Phase.READY

    async def drain(self) -> None:
        """Take nothing new, and wait for what runs, as long as `drain_s` says."""
        self.phase = Phase.DRAINING
        deadline = time.monotonic() + self.config.drain_s
        while self._loaded is not None and self._loaded.engine.num_open:
            if time.monotonic() > deadline:
                _log.warning("%d requests were cut off", self._loaded.engine.num_open)
                return
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """End everything."""
        self.phase = Phase.DRAINING
        if self._loaded is not None:
            await asyncio.to_thread(self._loaded.engine.stop)


def _load(directory: Path, config: ServeConfig) -> Loaded:
    device = find_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    model = load_checkpoint(directory, device=device, dtype=find_dtype(config.dtype, device))
    tokenizer = load_any_tokenizer(directory, vocab_size=model.config.vocab_size)
    engine = Engine(
        Decoder(model, defers=True, int8=config.quantize == "int8"),
        num_slots=config.slots,
        prefill_chunk=config.prefill_chunk,
        prefix_cache_bytes=int(config.prefix_cache_mb * 1e6),
    )
    folder = None if config.session_dir is None else Path(config.session_dir)
    return Loaded(
        config.model_id(directory),
        tokenizer,
        ChatTemplate.load(directory, tokenizer),
        AsyncEngine(engine, max_waiting=config.queue),
        SessionStore(model, folder, int(config.session_mb * 1e6)),
    )
