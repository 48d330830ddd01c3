"""The engine: many requests at once on one model, token ids in and out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from retnet.decoding import Decoder
from retnet.model import RetNetState
from retnet.sampling import History, adjusted, choose
from retnet.serve.pool import StatePool
from retnet.serve.prefix_cache import Prefix, PrefixCache
from retnet.serve.request import Finish, Output, PromptRead, Request, TokenLogprob
from retnet.serve.scheduler import Job, Piece, Scheduler


@dataclass(frozen=True)
class EngineStats:
    """How an engine is doing. num_reading and num_writing have a slot, num_waiting have none."""

    num_waiting: int
    num_reading: int
    num_writing: int
    num_slots: int
    slot_bytes: int
    num_prefixes: int
    prefix_bytes: int
    prefix_hits: int
    prefix_misses: int


@dataclass(frozen=True)
class Result:
    """All that came of a request; see `Output`."""

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    prompt: PromptRead | None
    finish: Finish
    state: RetNetState | None


class Engine:
    """Serves requests step by step; what a request gets depends on it alone, to the last bit.

    Args:
        decoder: the model.
        num_slots: how many requests are served at once; each takes `slot_bytes`, always.
        prefill_chunk: the most tokens of prompts that are read in a step, and the pieces in which
            a prompt is read.
        prefix_cache_bytes: for the states after beginnings of prompts; 0 keeps none.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_slots: int = 16,
        prefill_chunk: int = 256,
        prefix_cache_bytes: int = 2**29,
    ) -> None:
        for name, value, least in (
            ("num_slots", num_slots, 1),
            ("prefill_chunk", prefill_chunk, 1),
            ("prefix_cache_bytes", prefix_cache_bytes, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.decoder = decoder
        self._pool = StatePool(decoder.new_state(num_slots), decoder.settle_)
        self._scheduler = Scheduler(prefill_chunk)
        self._prefixes = PrefixCache(prefix_cache_bytes, prefill_chunk)
        self._next_id = self._num_hits = self._num_misses = 0
        self._aborted: list[Output] = []

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._aborted or self._scheduler.jobs)

    def stats(self) -> EngineStats:
        """How it is doing now."""
        scheduler, prefixes = self._scheduler, self._prefixes
        return EngineStats(
            num_waiting=len(scheduler.waiting),
            num_reading=len(scheduler.reading),
            num_writing=len(scheduler.writing),
            num_slots=self._pool.num_slots,
            slot_bytes=self._pool.slot_bytes,
            num_prefixes=len(prefixes),
            prefix_bytes=prefixes.num_bytes,
            prefix_hits=self._num_hits,
            prefix_misses=self._num_misses,
        )

    def check(self, request: Request) -> None:
        """ValueError for a request that names tokens which the model has not."""
        size = self.decoder.vocab_size
        named = (*request.prompt, *request.params.logit_bias)
        outside = [token for token in named if not 0 <= token < size]
        if outside:
            raise ValueError(f"token ids must be in [0, {size}), got {outside[0]}")

    def add(self, request: Request) -> int:
        """Take on a request; its id. Raises as `check` does."""
        self.check(request)
        self._next_id += 1
        generator = torch.Generator().manual_seed(request.seed)
        job = Job(self._next_id, request, generator)
        self._scheduler.waiting.append(job)
        return job.id

    def abort(self, request_id: int) -> None:
        """End a request now; its slot is free for the next step, which tells of its end."""
        job = self._scheduler.find(request_id)
        if job is not None:
            self._end(job)
            self._aborted.append(Output(request_id, finish=Finish.ABORTED))

    def step(self) -> list[Output]:
        """Read on in some of the prompts, and a token in each row that writes; what came of it."""
        outputs, self._aborted = self._aborted, []
        for job in self._scheduler.admit(self._pool.num_free):
            self._begin(job)
        writing, reading = list(self._scheduler.writing), self._scheduler.next_to_read()
        logits = self._read(writing, self._pieces(reading))
        if writing:
            outputs += self._choose(writing, logits)
        outputs += [self._prompt_read(job) for job in reading if not job.num_unread]
        return outputs

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """All requests at once, to their ends."""
        ids = [self.add(request) for request in requests]
        outputs: dict[int, list[Output]] = {request_id: [] for request_id in ids}
        while self.has_work:
            for output in self.step():
                outputs[output.request_id].append(output)
        return [_result(outputs[request_id]) for request_id in ids]

    def _begin(self, job: Job) -> None:
        """A job has come to its turn: give it a slot."""
        job.slot = self._pool.take()
        request = job.request
        if request.state is None:
            self._pool.clear_(job.slot)
        else:
            self._pool.write_(job.slot, request.state)
        if request.params.penalises:
            prompt = torch.tensor(request.prompt)
            job.history = History(prompt, self.decoder.vocab_size, self.decoder.device)

    def _pieces(self, jobs: Sequence[Job]) -> list[Piece]:
        """What to read now of the prompts of jobs: nothing of those that are wholly known."""
        pieces: list[Piece] = []
        beginnings: set[tuple[int, ...]] = set()
        for job in jobs:
            self._skip_known(job)
            prompt, end = job.request.prompt, job.num_read + self._scheduler.piece
            known_soon = self._takes_known(job) and prompt[:end] in beginnings
            if not job.num_unread or known_soon:
                continue
            if self._is_kept(job, min(end, len(prompt))):
                beginnings.add(prompt[:end])
            pieces.append(Piece(job, prompt[job.num_read : end]))
        return pieces

    def _takes_known(self, job: Job) -> bool:
        """Whether a job's prompt may be read on from where another's was left."""
        request = job.request
        return (
            request.state is None and not request.prompt_logprobs and self._prefixes.max_bytes > 0
        )

    def _is_kept(self, job: Job, num_read: int) -> bool:
        """Whether the state after so many tokens of a job's prompt is kept for others."""
        request = job.request
        return request.state is None and self._prefixes.wants(num_read, request.prompt)

    def _skip_known(self, job: Job) -> None:
        """Go on behind what is known of a job's prompt, perhaps since its last piece."""
        if not self._takes_known(job):
            return
        found = self._prefixes.longest(job.request.prompt)
        if found is not None and found.num_tokens > job.num_read:
            assert job.slot is not None
            self._pool.write_(job.slot, found.state)
            job.num_cached += found.num_tokens - job.num_read
            job.num_read, job.logits = found.num_tokens, found.logits

    def _read(self, writing: Sequence[Job], pieces: Sequence[Piece]) -> Tensor:
        """Read the last token of each job that writes, and pieces; the scores after the former."""
        jobs = [*writing, *(piece.job for piece in pieces)]
        if not jobs:
            return torch.empty(0)
        tokens = [job.last for job in writing]
        wanted = [*range(len(writing))]
        for piece in pieces:
            tokens += piece.tokens
            wanted += range(len(tokens) - piece.num_wanted, len(tokens))
        device = self.decoder.device
        logits = self.decoder.step_(
            torch.tensor(tokens, device=device),
            self._pool.state,
            torch.tensor([job.slot for job in jobs], device=device),
            counts=[1] * len(writing) + [len(piece.tokens) for piece in pieces],
            wanted=wanted,
        )
        after, *of_pieces = logits.split([len(writing), *(piece.num_wanted for piece in pieces)])
        for piece, scores in zip(pieces, of_pieces, strict=True):
            self._piece_read(piece, scores)
        return after

    def _piece_read(self, piece: Piece, logits: Tensor) -> None:
        """A piece has been read; logits [num_wanted, vocab_size]."""
        job, prompt = piece.job, piece.job.request.prompt
        if job.request.prompt_logprobs:
            self._note_prompt_logprobs(job, logits)
        job.num_read += len(piece.tokens)
        job.logits = None if job.num_unread else logits[-1].clone()
        if self._is_kept(job, job.num_read):
            assert job.slot is not None
            state = self._pool.read(job.slot)
            self._prefixes.put(prompt, Prefix(job.num_read, state, job.logits))

    def _note_prompt_logprobs(self, job: Job, logits: Tensor) -> None:
        """logits [T, vocab_size] after each token of the piece that comes next."""
        prompt, first = job.request.prompt, job.num_read
        if not first:
            job.prompt_logprobs.append(None)
        targets = prompt[first + 1 : first + 1 + len(logits)]
        assert job.request.num_logprobs is not None
        job.prompt_logprobs += _logprobs(logits[: len(targets)], targets, job.request.num_logprobs)

    def _prompt_read(self, job: Job) -> Output:
        """A prompt has been read: choose the first token."""
        assert job.slot is not None and job.logits is not None
        state = self._pool.read(job.slot) if job.request.returns_state else None
        self._scheduler.start_writing(job)
        self._num_hits += job.num_cached > 0
        self._num_misses += job.num_cached == 0
        read = PromptRead(job.num_cached, tuple(job.prompt_logprobs), state)
        if job.request.params.max_tokens == 0:
            return replace(self._finished(job, Finish.LENGTH), prompt=read)
        [output] = self._choose([job], job.logits[None])
        return replace(output, prompt=read)

    def _choose(self, jobs: Sequence[Job], logits: Tensor) -> list[Output]:
        """The next token of each job, from logits [B, vocab_size]."""
        are_numbers = logits.sum(dim=-1).isfinite().tolist()
        params = [job.request.params for job in jobs]
        draws = [
            torch.rand((), dtype=torch.float64, generator=job.generator).item()
            if job.request.params.temperature > 0
            else 0.0
            for job in jobs
        ]
        uniform = torch.tensor(draws, dtype=torch.float64, device=logits.device)
        # What are no numbers is not chosen from: its job ends.
        safe = self._adjusted(jobs, logits)
        if safe is not logits or not all(are_numbers):
            safe = safe.nan_to_num()
        chosen = choose(safe, params, uniform).tolist()
        return [
            self._chosen(job, token, raw) if is_number else self._finished(job, Finish.FAILED)
            for job, token, raw, is_number in zip(jobs, chosen, logits, are_numbers, strict=True)
        ]

    def _adjusted(self, jobs: Sequence[Job], logits: Tensor) -> Tensor:
        """Logits [B, vocab_size] after penalties and biases; the same tensor where none has any."""
        rows = {
            row: adjusted(logits[row], job.request.params, job.history)
            for row, job in enumerate(jobs)
            if job.history is not None or job.request.params.logit_bias
        }
        if not rows:
            return logits
        return torch.stack([rows.get(row, logits[row]) for row in range(len(jobs))])

    def _chosen(self, job: Job, token: int, logits: Tensor) -> Output:
        """A token was chosen for a job from logits [vocab_size]."""
        request = job.request
        job.last, job.num_generated = token, job.num_generated + 1
        if job.history is not None:
            job.history.append(token)
        output = Output(job.id)
        if token in request.params.stop_tokens:
            output = self._finished(job, Finish.STOP)
        elif job.num_generated == request.params.max_tokens:
            output = self._finished(job, Finish.LENGTH)
        logprob = None
        if request.num_logprobs is not None:
            [logprob] = _logprobs(logits[None], [token], request.num_logprobs)
        return replace(output, token=token, logprob=logprob)

    def _finished(self, job: Job, finish: Finish) -> Output:
        output = Output(job.id, finish=finish)
        if job.request.returns_state:
            assert job.slot is not None
            output = replace(output, state=self._pool.read(job.slot))
        self._end(job)
        return output

    def _end(self, job: Job) -> None:
        """Take a job off, and make its slot free."""
        self._scheduler.remove(job)
        if job.slot is not None:
            self._pool.give_back(job.slot)
            job.slot = None


def _logprobs(logits: Tensor, tokens: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """How likely tokens [T] were by logits [T, vocab_size]."""
    logprobs = logits.float().log_softmax(dim=-1)
    top = logprobs.topk(min(num_top, logprobs.shape[-1]), dim=-1)
    index = torch.tensor(tokens, dtype=torch.int64, device=logits.device)[:, None]
    found = logprobs.gather(1, index)[:, 0].tolist()
    return [
        TokenLogprob(token, logprob, tuple(zip(ids, values, strict=True)))
        for token, logprob, ids, values in zip(
            tokens, found, top.indices.tolist(), top.values.tolist(), strict=True
        )
    ]


def _result(outputs: Sequence[Output]) -> Result:
    last = outputs[-1]
    assert last.finish is not None
    return Result(
        tokens=tuple(output.token for output in outputs if output.token is not None),
        logprobs=tuple(output.logprob for output in outputs if output.logprob is not None),
        prompt=next((output.prompt for output in outputs if output.prompt is not None), None),
        finish=last.finish,
        state=last.state,
    )
