"""What clients send: OpenAI's requests, and the fields that vLLM's clients add. Others are ignored.

Numbers must be numbers: "5" and true are refused where an integer stands.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from retnet.sampling import SamplingParams
from retnet.serve.errors import ApiError
from retnet.serve.request import MOST_LOGPROBS

DEFAULT_MAX_TOKENS = 256
_MOST_CHOICES = 128

Number = StrictFloat | StrictInt
TokenIds = list[StrictInt]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=1024)]
SessionId = Annotated[StrictStr, Field(max_length=64)]


@dataclass(frozen=True)
class Ends:
    """What ends a text by itself, whatever a client asks for: ids of tokens, and strings."""

    stop_tokens: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()


class Body(BaseModel):
    """A JSON object; NaN and infinities are not numbers in it."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class StreamOptions(Body):
    """What streams tell besides text.

    include_usage: a last chunk with the counts of tokens; continuous_usage_stats: on every chunk.
    """

    include_usage: StrictBool = False
    continuous_usage_stats: StrictBool = False


class Sampling(Body):
    """What completions and chat have in common."""

    model: StrictStr | None = None
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[StrictStr, Annotated[Number, Field(ge=-100, le=100)]], Field(max_length=1024)
        ]
        | None
    ) = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    ignore_eos: StrictBool = False
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=_MOST_CHOICES)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    session_id: SessionId | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end a text."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def num_choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def usage_on_chunks(self) -> bool:
        """Whether every chunk of a stream counts tokens."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def usage_at_end(self) -> bool:
        """Whether the last chunk of a stream counts tokens."""
        options = self.stream_options
        return options is not None and (options.include_usage or options.continuous_usage_stats)

    def params(self, max_tokens: int | None, ends: Ends) -> SamplingParams:
        """How tokens are chosen.

        max_tokens: what the client asked for; ends: what ends a text by itself, unless ignored.
        """
        given = {
            name: getattr(self, name)
            for name in (
                "temperature",
                "top_p",
                "min_p",
                "repetition_penalty",
                "frequency_penalty",
                "presence_penalty",
            )
            if getattr(self, name) is not None
        }
        return SamplingParams(
            max_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
            top_k=max(self.top_k or 0, 0),
            logit_bias=self._biases(),
            stop=(*self.stops, *(() if self.ignore_eos else ends.stop)),
            stop_tokens=() if self.ignore_eos else ends.stop_tokens,
            **given,
        )

    def _biases(self) -> dict[int, float]:
        try:
            return {int(token): bias for token, bias in (self.logit_bias or {}).items()}
        except ValueError:
            raise ApiError(
                400,
                "logit_bias must hold numbers by token ids, such as {'50': -100}",
                param="logit_bias",
            ) from None


class CompletionRequest(Sampling):
    """A text, or texts, to go on with."""

    prompt: StrictStr | TokenIds | list[StrictStr] | list[TokenIds]
    echo: StrictBool | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    suffix: StrictStr | None = None
    best_of: StrictInt | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each by itself."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return list(prompt)


class ContentPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: StrictStr


class Message(Body):
    """A message of a chat."""

    role: Annotated[StrictStr, Field(max_length=64)]
    content: StrictStr | list[ContentPart] | None = None

    def flat(self) -> dict[str, str]:
        """Role and text."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": self.role, "content": text}


class ChatRequest(Sampling):
    """A conversation that the assistant goes on with."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MOST_LOGPROBS)] | None = None


class TokenizeRequest(Body):
    """A text to make tokens of."""

    prompt: StrictStr
    add_special_tokens: StrictBool = True


class DetokenizeRequest(Body):
    """Tokens to make a text of."""

    tokens: TokenIds
