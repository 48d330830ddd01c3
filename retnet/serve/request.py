"""What an engine is asked, and what it gives out."""

from dataclasses import dataclass
from enum import Enum

from retnet.model import RetNetState
from retnet.sampling import SamplingParams

MOST_LOGPROBS = 20


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to go on with.

    Attributes:
        prompt: token ids, at least one.
        params: how tokens are chosen, and when to end; `stop` strings don't count here, its
            `stop_tokens` do. With max_tokens 0 the prompt is only read.
        seed: what its draws come from; they depend on nothing else.
        num_logprobs: None for no log probabilities; k for those of each generated token and of the
            k likeliest in its place.
        prompt_logprobs: those of the prompt's tokens too.
        state: one row, what was read before the prompt.
        returns_state: the states after the prompt and at the end are given out.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int = 0
    num_logprobs: int | None = None
    prompt_logprobs: bool = False
    state: RetNetState | None = None
    returns_state: bool = False

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt must hold at least one token, got none")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63), got {self.seed}")
        if self.num_logprobs is not None and not 0 <= self.num_logprobs <= MOST_LOGPROBS:
            raise ValueError(
                f"num_logprobs must be in [0, {MOST_LOGPROBS}], got {self.num_logprobs}"
            )
        if self.prompt_logprobs and self.num_logprobs is None:
            raise ValueError("prompt_logprobs needs num_logprobs, got None; 0 is enough")
        if self.state is not None and len(self.state.position) != 1:
            raise ValueError(f"state must have one row, got {len(self.state.position)}")


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was, before temperature, penalties and cuts.

    logprob: in nats; top: the likeliest tokens in its place with theirs, from the likeliest down.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Finish(Enum):
    """Why a request ended."""

    STOP = "stop"  # a stop token, which the output holds
    LENGTH = "length"
    ABORTED = "aborted"
    FAILED = "failed"  # the model gave scores that are not numbers, or the engine broke down


@dataclass(frozen=True)
class PromptRead:
    """A prompt has been read.

    num_cached: how many of its tokens needed no reading.
    logprobs: one a token if asked for, None for a first one that nothing was read before.
    state: after the prompt, one row, if asked for.
    """

    num_cached: int
    logprobs: tuple[TokenLogprob | None, ...] = ()
    state: RetNetState | None = None


@dataclass(frozen=True)
class Output:
    """What a step has for a request.

    Attributes:
        request_id: what `Engine.add` gave it.
        token: a generated token; None where the prompt alone was read, and at an end without one.
        logprob: that of the token, if asked for.
        prompt: once, with the first output after the prompt.
        finish: why the request ended with this output; None where it goes on.
        state: with the last output if asked for: after all but the last generated token.
    """

    request_id: int
    token: int | None = None
    logprob: TokenLogprob | None = None
    prompt: PromptRead | None = None
    finish: Finish | None = None
    state: RetNetState | None = None
