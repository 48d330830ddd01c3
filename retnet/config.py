"""What a RetNet is made of: a frozen dataclass that checks itself, named sizes, arithmetic on them.

Imports nothing heavy, so that a command line can describe itself at once.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite, prod
from typing import Any, Literal, TypeGuard, get_args

MixerKind = Literal["retention", "attention", "linear", "rwkv", "h3", "hyena"]
DecayRule = Literal["equation8", "linspace", "wide", "none"]
ScoreNorm = Literal["none", "decay", "paper"]
NormKind = Literal["layernorm", "rmsnorm"]
HeadNormKind = Literal["layernorm", "rmsnorm", "none"]
FeedForwardKind = Literal["gelu", "swiglu", "geglu"]
RotaryPairing = Literal["interleaved", "halves"]
RotaryFrequencies = Literal["torchscale", "rope"]


def nearest(word: str, candidates: Sequence[str] | Mapping[str, Any]) -> str:
    """'; did you mean ...?' for the closest candidate, or nothing where none is close."""
    close = difflib.get_close_matches(word, list(candidates), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A RetNet's shape and rules. Sizes left at 0 follow the paper's allocation of 12 d_model^2
    parameters a layer.

    Legend of shapes, used everywhere: B batch, T tokens of this call, H heads, K key size per head,
        V value size per head, D model width, L layers.

    A block's token mixer can be another than retention, for comparison at equal parameters; then
    the feed forward takes 8 of the 12 d_model^2, and what is said of decay and norms of retention's
    heads does not apply.

    Attributes:
        mixer: "retention"; or its rivals, see `retnet.mixers`: "attention", softmax attention;
            "linear", Linear Transformer; "rwkv", RWKV-4's time mixing; "h3"; "hyena".
        vocab_size: number of token ids; 259 is the byte tokenizer's (256 bytes and pad, bos, eos).
        d_model: D, width of the residual stream.
        num_layers: L, the number of blocks.
        num_heads: H, the number of retention heads, each with its own decay.
        key_size: K; 0 for D / H.
        value_size: V; 0 for 2 K (paper, section 3.1), for K beside other mixers.
        ffn_size: hidden width of the feed forward; 0 for 2 D (gelu) or as many parameters in
            4/3 D, rounded to a multiple of 8 (swiglu, geglu); beside other mixers twice that.
        decay: gamma per head. "equation8": 1 - 2^(-5-h); "linspace": 1 - exp(linspace(log 1/32,
            log 1/512, H)), the rule of the paper's language models; "wide": the same from 1/2, for
            bytes, where the last few tokens matter most; "none": 1; or a list of H gammas in
            (0, 1].
        score_norm: what divides a head's output before its norm. "none": nothing; "decay":
            sqrt(Z_n) (torchscale's recurrent form); "paper": max(|row sum|, sqrt(Z_n)), the paper's
            three normalisers together.
        gate: whether a swish gate multiplies the heads' outputs. Without it parameters are allotted
            as beside other mixers: values as wide as keys, a feed forward of 8 d_model^2.
        head_norm: the norm over each head's V outputs, per token; "none" leaves them as they are.
        head_norm_affine: whether that norm has a weight (and a bias, for layernorm), shared by the
            heads.
        head_norm_eps: its epsilon.
        norm: the norm before each half of a block and after the last block.
        norm_eps: its epsilon.
        feed_forward: "gelu": gelu(x W1) W2 (Eq. 9); "swiglu": (silu(x W1) . x W3) W2; "geglu": the
            same with gelu for silu.
        ffn_norm: whether a norm stands before W2, over the hidden width.
        embedding_norm: whether a norm stands between the embedding and the first block.
        bias: whether projections have biases.
        rotary_pairing: whether a rotated pair is (0, 1), (2, 3), ... or (0, K/2), (1, K/2 + 1), ...
        rotary_frequencies: "torchscale": 10000^-(i / (K/2 - 1)); "rope": 10000^-(2i / K).
        tie_embeddings: whether the output head is the embedding matrix.
        dropout: probability, on the output of each half of a block.
    """

    mixer: MixerKind = "retention"
    vocab_size: int = 259
    d_model: int = 256
    num_layers: int = 4
    num_heads: int = 4
    key_size: int = 0
    value_size: int = 0
    ffn_size: int = 0
    decay: DecayRule | Sequence[float] = "linspace"
    score_norm: ScoreNorm = "none"
    gate: bool = True
    head_norm: HeadNormKind = "layernorm"
    head_norm_affine: bool = False
    head_norm_eps: float = 1e-5
    norm: NormKind = "layernorm"
    norm_eps: float = 1e-5
    feed_forward: FeedForwardKind = "gelu"
    ffn_norm: bool = False
    embedding_norm: bool = False
    bias: bool = False
    rotary_pairing: RotaryPairing = "interleaved"
    rotary_frequencies: RotaryFrequencies = "torchscale"
    tie_embeddings: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        if not self.key_size:
            _require(
                self.d_model % self.num_heads == 0,
                f"num_heads must divide d_model, got {self.num_heads} and {self.d_model}; "
                "change one or set key_size",
            )
            object.__setattr__(self, "key_size", self.d_model // self.num_heads)
        if not self.value_size:
            wide = 2 if self._is_gated else 1
            object.__setattr__(self, "value_size", wide * self.key_size)
        if not self.ffn_size:
            times = 1 if self._is_gated else 2
            width = (
                2 * times * self.d_model
                if self.feed_forward == "gelu"
                else 8 * max(1, round(times * self.d_model / 6))
            )
            object.__setattr__(self, "ffn_size", width)
        _require(
            self.key_size % 2 == 0,
            f"key_size must be even (it rotates in pairs), got {self.key_size}",
        )
        if not isinstance(self.decay, str):
            self._check_gammas()

    def _check_choices(self) -> None:
        for name, kind in _CHOICES.items():
            value = getattr(self, name)
            if name == "decay" and not isinstance(value, str):
                continue
            allowed = ", ".join(map(repr, get_args(kind)))
            _require(value in get_args(kind), f"{name} must be one of {allowed}, got {value!r}")

        for name in _SWITCHES:
            value = getattr(self, name)
            _require(isinstance(value, bool), f"{name} must be true or false, got {value!r}")

    def _check_numbers(self) -> None:
        for name in (
            "vocab_size",
            "d_model",
            "num_layers",
            "num_heads",
            "key_size",
            "value_size",
            "ffn_size",
        ):
            value = getattr(self, name)
            least = 0 if name in ("key_size", "value_size", "ffn_size") else 1
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= least
            _require(is_count, f"{name} must be an integer >= {least}, got {value!r}")
        for name in ("head_norm_eps", "norm_eps"):
            value = getattr(self, name)
            _require(_is_number(value) and value >= 0, f"{name} must be >= 0, got {value!r}")
        _require(
            _is_number(self.dropout) and 0 <= self.dropout < 1,
            f"dropout must be in [0, 1), got {self.dropout!r}",
        )

    def _check_gammas(self) -> None:
        gammas: list[Any] = [*self.decay] if isinstance(self.decay, Sequence) else [self.decay]
        _require(
            len(gammas) == self.num_heads,
            f"decay must list one gamma a head, got {len(gammas)} for {self.num_heads} heads",
        )
        _require(
            all(_is_number(gamma) and 0 < gamma <= 1 for gamma in gammas),
            f"decay must list gammas in (0, 1], got {gammas}; pass gamma, not log(gamma)",
        )
        object.__setattr__(self, "decay", tuple(map(float, gammas)))

    @property
    def _is_gated(self) -> bool:
        return self.mixer == "retention" and self.gate

    def require_retention(self, what: str) -> None:
        """ValueError for a model with another mixer, which is no thing for `what`."""
        _require(
            self.mixer == "retention",
            f"{what} needs a model whose mixer is retention, got {self.mixer!r}",
        )

    @property
    def state_grows(self) -> bool:
        """Whether the state is a cache of all that was read, so that no text goes on for ever."""
        return self.mixer in ("attention", "hyena")

    @property
    def layer_parameters(self) -> int:
        """Parameters of one block's projections: 12 d_model^2 with the paper's allocation."""
        keys, values = self.num_heads * self.key_size, self.num_heads * self.value_size
        if self.mixer in ("retention", "attention", "linear"):
            mixing = self.d_model * (2 * keys + (3 if self._is_gated else 2) * values)
        else:
            mixing = 4 * self.d_model**2
        matrices = 2 if self.feed_forward == "gelu" else 3
        return mixing + matrices * self.d_model * self.ffn_size

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """[H, K, V] of one layer's recurrent state for one sequence, as retention keeps it."""
        self.require_retention("the shape of its state")
        return self.num_heads, self.key_size, self.value_size + (self.score_norm == "paper")

    @property
    def state_numbers(self) -> int:
        """Numbers in the recurrent state of one sequence, all layers together; each is 4 bytes."""
        return self.num_layers * prod(self.state_shape)

    @property
    def flops_per_token(self) -> int:
        """Operations to decode one token: two for a weight, five for a number of the state."""
        head = self.vocab_size * self.d_model
        return 2 * (self.num_layers * self.layer_parameters + head) + 5 * self.state_numbers

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The config of `to_dict`'s fields; an unknown key is a ValueError naming the nearest."""
        names = [field.name for field in fields(cls)]
        for key in values:
            _require(key in names, f"unknown model setting {key!r}{nearest(key, names)}")
        return cls(**values)


_SWITCHES = ("gate", "head_norm_affine", "ffn_norm", "embedding_norm", "bias", "tie_embeddings")

_CHOICES: dict[str, Any] = {
    "mixer": MixerKind,
    "decay": DecayRule,
    "score_norm": ScoreNorm,
    "head_norm": HeadNormKind,
    "norm": NormKind,
    "feed_forward": FeedForwardKind,
    "rotary_pairing": RotaryPairing,
    "rotary_frequencies": RotaryFrequencies,
}


def _paper(d_model: int, num_layers: int) -> dict[str, Any]:
    """A model of the paper's tables 2 and 7: head size 256, value size 512, ffn 2 D, dropout 0.1.

    The paper names neither tokenizer nor vocabulary; 50,304 is GPT-2's, rounded up to a multiple of
    128.
    """
    return dict(
        vocab_size=50_304,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=d_model // 256,
        dropout=0.1,
    )


# What small models of bytes do better with than with the defaults, which are the paper's.
_BYTES: dict[str, Any] = dict(decay="wide", feed_forward="swiglu", tie_embeddings=False)

_PRESET_FIELDS: dict[str, dict[str, Any]] = {
    "tiny": dict(d_model=128, num_layers=4, num_heads=4, **_BYTES),
    "small": dict(d_model=320, num_layers=6, num_heads=5, **_BYTES),
    "base": dict(d_model=768, num_layers=12, num_heads=6),
    "200m": _paper(1024, 16),
    "1.3b": _paper(2048, 24),
    "2.7b": _paper(2560, 32),
    "6.7b": _paper(4096, 32),
    "13b": _paper(5120, 40),
}

PRESETS: dict[str, ModelConfig] = {
    name: ModelConfig(**chosen) for name, chosen in _PRESET_FIELDS.items()
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """The named model with some fields changed; sizes left open follow the changed ones."""
    _require(
        name in PRESETS,
        f"unknown preset {name!r}{nearest(name, PRESETS)}; there are {', '.join(PRESETS)}",
    )
    return ModelConfig.from_dict({**_PRESET_FIELDS[name], **changes})
