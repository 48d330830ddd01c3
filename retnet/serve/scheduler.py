"""Who is served next: the engine asks, this decides."""

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retnet.sampling import History
from retnet.serve.request import Request, TokenLogprob


@dataclass(eq=False)
class Job:
    """A request on its way.

    Attributes:
        slot: its row of the pool, once it has one.
        num_read: tokens of the prompt that have been read, num_cached of them by others before.
        logits: [vocab_size] fp32, of the token to be chosen next.
        generator: where its draws come from.
        last: the token that was generated last.
        num_generated: tokens generated so far.
        history: what penalties ask for.
    """

    id: int
    request: Request
    generator: torch.Generator
    slot: int | None = None
    num_read: int = 0
    num_cached: int = 0
    logits: Tensor | None = None
    last: int = -1
    num_generated: int = 0
    history: History | None = None
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)

    @property
    def num_unread(self) -> int:
        """Tokens of the prompt that are still to be read."""
        return len(self.request.prompt) - self.num_read


@dataclass(frozen=True)
class Piece:
    """Tokens of a job's prompt to read in a step."""

    job: Job
    tokens: tuple[int, ...]

    @property
    def num_wanted(self) -> int:
        """After how many of its last tokens scores are wanted."""
        if self.job.request.prompt_logprobs:
            return len(self.tokens)
        return int(len(self.tokens) == self.job.num_unread)


class Scheduler:
    """Three queues: jobs without a slot, jobs whose prompt is being read, jobs that write.

    Each step, every job that writes gets a token, and some pieces of prompts are read beside, in
    turn, so that neither a long prompt nor many of them stall those who write or those who came
    later.

    piece: the most tokens of a prompt to read at a time. Where pieces begin and end depends on the
        request alone: other cuts would round differently.
    """

    # What a short prompt costs at least, in tokens: the weights are read for it once.
    _LEAST_COST = 32

    def __init__(self, piece: int) -> None:
        self.piece = piece
        self.waiting: deque[Job] = deque()
        self.reading: deque[Job] = deque()
        self.writing: list[Job] = []

    @property
    def jobs(self) -> list[Job]:
        """All of them."""
        return [*self.waiting, *self.reading, *self.writing]

    def find(self, request_id: int) -> Job | None:
        """The job of a request, if it is still on its way."""
        return next((job for job in self.jobs if job.id == request_id), None)

    def admit(self, num_free: int) -> list[Job]:
        """The jobs that get the free slots: first come, first served."""
        admitted = [self.waiting.popleft() for _ in range(min(num_free, len(self.waiting)))]
        self.reading.extend(admitted)
        return admitted

    def next_to_read(self) -> list[Job]:
        """The jobs of which a piece is read in this step; they go to the end of the queue."""
        chosen: list[Job] = []
        budget = self.piece
        for job in list(self.reading):
            cost = max(min(job.num_unread, self.piece), self._LEAST_COST)
            if chosen and cost > budget:
                break
            chosen.append(job)
            budget -= cost
        self.reading.rotate(-len(chosen))
        return chosen

    def start_writing(self, job: Job) -> None:
        """The job's prompt has been read."""
        self.reading.remove(job)
        self.writing.append(job)

    def remove(self, job: Job) -> None:
        """The job has ended."""
        for queue in (self.waiting, self.reading, self.writing):
            if job in queue:
                queue.remove(job)
