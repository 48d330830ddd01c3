"""`retnet inspect`."""

from collections import Counter
from math import exp, inf, log
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from retnet.commands.flags import Command, UsageError, Values, add_flag
from retnet.commands.models import add_preset, kv_cache_bytes
from retnet.commands.terminal import bytes_text
from retnet.config import ModelConfig, preset

if TYPE_CHECKING:
    from rich.table import Table

_WINDOW_WEIGHT = 0.01

_PART_OF_MODULE = {
    "embed_tokens": "embedding",
    "q_proj": "mixer: queries, keys, values",
    "k_proj": "mixer: queries, keys, values",
    "v_proj": "mixer: queries, keys, values",
    "in_proj": "mixer: queries, keys, values",
    "g_proj": "mixer: gate",
    "r_proj": "mixer: gate",
    "out_proj": "mixer: output",
    "mixer": "mixer: filters and decays",
    "filter_in": "mixer: filters and decays",
    "filter_hidden": "mixer: filters and decays",
    "filter_last": "mixer: filters and decays",
    "filter_out": "mixer: filters and decays",
    "up_proj": "feed forward",
    "gate_proj": "feed forward",
    "down_proj": "feed forward",
    "lm_head": "output head",
}


def _add_flags(parser: ArgumentParser) -> None:
    add_preset(parser, None)
    add_flag(parser, "model", str | None, None, "folder of a run or of another checkpoint", "DIR")


def _run(values: Values) -> int:
    if values["preset"] and values["model"]:
        raise UsageError("--preset and --model both name a model; pass one of them")
    name = values["model"] or values["preset"] or "tiny"
    if values["model"]:
        from retnet.checkpoint import read_config

        _show(name, read_config(name))
    else:
        _show(name, preset(name))
    return 0


def _show(name: str, config: ModelConfig) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(
        f"[bold]{name}[/bold]: {config.num_layers} layers of {config.mixer}, width "
        f"{config.d_model}, "
        f"{config.num_heads} heads with keys of {config.key_size} and values of "
        f"{config.value_size}, feed forward of {config.ffn_size} ({config.feed_forward}), "
        f"vocabulary of {config.vocab_size:,}"
    )
    tables = [_parameter_table(config)]
    if config.mixer == "retention":
        tables += [_cost_table(config), _head_table(config)]
    for table in tables:
        console.print()
        console.print(table)


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part of a model, over all layers. Its weights are not made for it."""
    import torch

    from retnet.model import RetNet

    with torch.device("meta"):
        model = RetNet(config)
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        module, kind = name.split(".")[-2:]
        part = "biases" if kind == "bias" else _PART_OF_MODULE.get(module, "norms")
        counts["norms" if module.endswith("norm") else part] += parameter.numel()
    order = [*_PART_OF_MODULE.values(), "norms", "biases"]
    return dict(sorted(counts.items(), key=lambda item: order.index(item[0])))


def _parameter_table(config: ModelConfig) -> "Table":
    counts = parameters_by_part(config)
    total = sum(counts.values())
    table = _new_table("Parameters", "", "parameters", "share")
    for part, count in counts.items():
        table.add_row(part, f"{count:,}", f"{count / total:.1%}")
    if config.tie_embeddings:
        table.add_row("output head", "the embedding", "")
    table.add_section()
    table.add_row("all", f"{total:,}", "100%")
    return table


def _cost_table(config: ModelConfig) -> "Table":
    """What one sequence costs, beside a Transformer of as many layers and the same width."""
    state_bytes = 4 * config.state_numbers
    cache_bytes = kv_cache_bytes(config)
    table = _new_table("One sequence", "", "")
    table.add_row("state (fp32), whatever the length", bytes_text(state_bytes))
    table.add_row("a Transformer's KV cache (16 bit), a token", bytes_text(cache_bytes))
    table.add_row("  as large as the state at", f"{state_bytes / cache_bytes:,.0f} tokens")
    table.add_row("  at 100,000 tokens", bytes_text(100_000 * cache_bytes))
    table.add_row("floating-point operations to write a token", f"{config.flops_per_token:,}")
    return table


def _head_table(config: ModelConfig) -> "Table":
    from retnet.position import log_decays

    window = f"below {_WINDOW_WEIGHT:.0%} after"
    table = _new_table("What each head remembers", "head", "gamma", "half after", window)
    for head, log_decay in enumerate(log_decays(config.decay, config.num_heads).tolist()):
        half, rest = (_tokens_until(weight, log_decay) for weight in (0.5, _WINDOW_WEIGHT))
        gamma = f"{exp(log_decay):.6f}"
        table.add_row(str(head), gamma, half, rest)
    return table


def _tokens_until(weight: float, log_decay: float) -> str:
    """After how many tokens one weighs so much: log(weight) / log(gamma)."""
    tokens = log(weight) / log_decay if log_decay else inf
    return "never" if tokens == inf else f"{tokens:,.1f} tokens"


def _new_table(title: str, *headings: str) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=any(headings))
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="left" if column == 0 else "right", no_wrap=True)
    return table


COMMAND = Command(
    summary="show a model's parameters, state, costs, and how long each head remembers",
    usage="[--preset NAME | --model DIR]",
    details="A preset is not built for it, however large. Without flags: tiny.",
    add_flags=_add_flags,
    run=_run,
)
