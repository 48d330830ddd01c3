"""What a server tells Prometheus of itself."""

import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from retnet.serve.engine import EngineStats
from retnet.serve.service import Service
from retnet.serve.writing import Piece

_FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_NEXT_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counts and times of a server, in a registry of its own."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Now(service))
        self._first = self._histogram(
            "time_to_first_token", "From a request to its first token.", _FIRST_TOKEN_S
        )
        self._next = self._histogram(
            "inter_token_latency", "From a token of a request to its next.", _NEXT_TOKEN_S
        )
        self._read = self._counter("prompt_tokens", "Tokens of prompts, known ones too.")
        self._known = self._counter("cached_prompt_tokens", "Those that needed no reading.")
        self._written = self._counter("generated_tokens", "Tokens written.")
        self._answers = Counter(
            "retnet_responses", "Requests by status.", ["status"], registry=self._registry
        )

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)

    def count_response(self, status: int) -> None:
        """A request was answered."""
        self._answers.labels(status=str(status)).inc()

    async def observed(
        self, pieces: AsyncGenerator[Piece, None], num_prompt: int
    ) -> AsyncGenerator[Piece, None]:
        """The same pieces, timed and counted. num_prompt: tokens of their prompt."""
        last, histogram = time.perf_counter(), self._first
        async with aclosing(pieces) as source:
            async for piece in source:
                now = time.perf_counter()
                if piece.prompt is not None:
                    self._read.inc(num_prompt)
                    self._known.inc(piece.prompt.num_cached)
                if piece.token is not None:
                    histogram.observe(now - last)
                    self._written.inc()
                    last, histogram = now, self._next
                yield piece

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"retnet_{name}", text, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        return Histogram(
            f"retnet_{name}_seconds", text, buckets=tuple(buckets), registry=self._registry
        )


class _Now(Collector):
    """What is asked of the engine and the sessions when somebody looks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        if self._service.is_loaded:
            yield from _of_engine(self._service.loaded.engine.stats())
            yield _gauge("sessions", "Sessions.", self._service.loaded.sessions.num_sessions)


def _of_engine(stats: EngineStats) -> Iterator[Metric]:
    used = stats.num_reading + stats.num_writing
    yield _gauge("requests_running", "Requests that have a slot.", used)
    yield _gauge("requests_waiting", "Requests that have none yet.", stats.num_waiting)
    yield _gauge("slots", "Requests that can be served at once.", stats.num_slots)
    yield _gauge("slots_used", "Slots that are taken.", used)
    yield _gauge("slot_bytes", "Bytes of a slot, whatever was read.", stats.slot_bytes)
    yield _gauge("prefix_cache_bytes", "Bytes of states of known beginnings.", stats.prefix_bytes)
    yield _gauge("prefix_cache_entries", "States of known beginnings.", stats.num_prefixes)
    hits, misses = stats.prefix_hits, stats.prefix_misses
    yield _counter("prefix_cache_hits", "Prompts whose beginning was known.", hits)
    yield _counter("prefix_cache_misses", "Prompts read from their beginning.", misses)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"retnet_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"retnet_{name}", text, value=value)
