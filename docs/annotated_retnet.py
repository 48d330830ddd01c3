# %% [markdown]
# # The paper, annotated
#
# [Retentive Network: A Successor to Transformer for Large Language Models](https://arxiv.org/abs/2307.08621)
# has one idea: a sum over the past that can be computed in three ways. This page goes through its
# section 2, equation by equation. Each is written out, then the function of this project that
# computes it is called, and an assertion says that both are the same. The page is a program:
# `python docs/annotated_retnet.py` runs it, and so do the tests.
#
# Numbers of equations are those of version 4. Where the paper leaves something out or has it wrong,
# the text says so.

# %%
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from retnet import MultiScaleRetention, RetNet, RetNetBlock, combine_states, preset
from retnet.config import ModelConfig
from retnet.ops import reference, retention_chunkwise, retention_parallel, retention_recurrent
from retnet.position import decay_sum, log_decays, make_context, rotary_angles, rotate

torch.set_default_dtype(torch.float64)
random = torch.Generator().manual_seed(0)
normal = partial(torch.randn, generator=random)
same = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)

# %% [markdown]
# ## A recurrence and its sum (Eq. 1)
#
# Begin with the plainest recurrent network there is: no activation between steps. A vector $s$ is
# what is remembered. At each token it is multiplied by a matrix $A$, a key $K_n$ is added as often
# as a number $v_n$ says, and a query $Q_n$ reads it:
#
# $$s_n = A s_{n-1} + K_n^\top v_n, \qquad o_n = Q_n s_n$$
#
# Put the first equation into itself until nothing of $s$ is left. As the network is linear, that
# leaves a sum, in which each pair of tokens has one term:
#
# $$o_n = \sum_{m=1}^{n} Q_n A^{n-m} K_m^\top v_m$$
#
# The paper writes no state before the first token. It is zero, and [further down](#where-s_0-goes)
# it is not.

# %%
T, K = 12, 4
A = normal(K, K) / 4
Q_1, K_1, v_1 = normal(T, K), normal(T, K), normal(T)

s, by_recurrence = torch.zeros(K), []
for n in range(T):
    s = A @ s + K_1[n] * v_1[n]
    by_recurrence.append(Q_1[n] @ s)

by_sum = [
    sum(Q_1[n] @ torch.linalg.matrix_power(A, n - m) @ K_1[m] * v_1[m] for m in range(n + 1))
    for n in range(T)
]
same(torch.stack(by_recurrence), torch.stack(by_sum))

# %% [markdown]
# ## From a matrix to a decay and a rotation (Eq. 3 and 4)
#
# A power of a matrix for each pair of tokens is more than anyone can pay. But nearly every matrix
# is diagonal in the right coordinates,
# $A = \Lambda\,\mathrm{diag}(\gamma e^{i\theta})\,\Lambda^{-1}$, with complex numbers on the
# diagonal: a size $\gamma$ and an angle $\theta$ each. A power of $A$ is then a power of each of
# these, and $\Lambda$ stands next to $Q$ and $K$, which are learned: it can be taken as a part of
# them.

# %%
diagonal, Lambda = torch.linalg.eig(A)
Q_c, K_c = Q_1.to(Lambda.dtype) @ Lambda, K_1.to(Lambda.dtype) @ torch.linalg.inv(Lambda).T
by_diagonal = [
    sum((Q_c[n] * diagonal ** (n - m) * K_c[m]).sum() * v_1[m] for m in range(n + 1))
    for n in range(T)
]
same(torch.stack(by_diagonal).real, torch.stack(by_sum))

# %% [markdown]
# Then a choice that is not an equality: **one** $\gamma$ for all entries of a key. It leaves the
# sum as a decay, and a product of a turned query with a turned key ($^\dagger$ is the conjugate
# transpose):
#
# $$o_n = \sum_{m=1}^{n} \gamma^{\,n-m}\, (Q_n e^{in\theta})\,(K_m e^{im\theta})^\dagger\, v_m$$
#
# Read literally, that is a complex number. What is meant is its real part: two entries of a real
# key are one complex number, and turning it turns the pair. The paper says nothing of which angles;
# its authors' code has $\theta_j = 10000^{-j/(K/2-1)}$, both ends included. `rotate` does that
# here.

# %%
gamma = 0.9
positions = torch.arange(T)
theta = rotary_angles(positions[1:2], K, "torchscale")[0]  # the angles of position 1: [K/2]
angles = rotary_angles(positions, K, "torchscale")
turn = torch.stack([angles.cos(), angles.sin()], dim=-1)[None, :, None]  # [1, T, 1, K/2, 2]


def turned(x: Tensor) -> Tensor:
    """x [T, K] at positions 0, 1, ..."""
    return rotate(x[None, :, None], turn, "interleaved")[0, :, 0]


as_complex = [torch.view_as_complex(x.unflatten(-1, (-1, 2))) for x in (Q_1, K_1)]
Q_t, K_t = (x * torch.exp(1j * positions[:, None] * theta) for x in as_complex)
same(turned(Q_1) @ turned(K_1).T, (Q_t @ K_t.conj().T).real)

# %% [markdown]
# What a turned query makes of a turned key depends on how far they are apart and on nothing else.
# That is why this serves as an encoding of positions, and why a state that was computed at position
# 0 can be moved to any other.

# %%
same_query, same_key = Q_1[:1].expand(T, K), K_1[:1].expand(T, K)
scores = turned(same_query) @ turned(same_key).T
for distance in range(T):
    along = scores.diagonal(-distance)
    same(along, along[:1].expand(len(along)))

# %% [markdown]
# ## The parallel form (Eq. 5)
#
# From here on $v$ is a vector too, and there are heads with a decay each. `Q` and `K` are turned
# and scaled already: the function is the equation and nothing else.
#
# $$\mathrm{Retention}(X) = (Q K^\top \odot D)\,V, \qquad
# D_{nm} = \begin{cases}\gamma^{\,n-m} & n \ge m\\ 0 & n < m\end{cases}$$
#
# One matrix is both the mask and the decay. Its diagonal is 1: the token that is read now is not
# faded. Without $D$'s decay and with a softmax it would be attention; this is what a GPU likes to
# train with.

# %%
B, T, H, K, V = 2, 24, 4, 8, 16
q, k, v = normal(B, T, H, K), normal(B, T, H, K), normal(B, T, H, V)
log_decay = log_decays("equation8", H)

n = torch.arange(T)
D = torch.exp(log_decay[:, None, None] * (n[:, None] - n)).tril()  # [H, T, T]
scores = torch.einsum("bnhk,bmhk->bhnm", q, k) * D
by_equation_5 = torch.einsum("bhnm,bmhv->bnhv", scores, v)

parallel, state = retention_parallel(q, k, v, log_decay)
same(parallel, by_equation_5)

# %%
figure, axes = plt.subplots(1, H, figsize=(10, 2.8), layout="constrained")
for axis, matrix, each in zip(axes, D, log_decay.exp(), strict=True):
    image = axis.imshow(matrix.numpy(), vmin=0, vmax=1, cmap="viridis")
    axis.set_title(f"γ = {each:.4g}")
    axis.set_xlabel("m, the token that is read of")
axes[0].set_ylabel("n, the token that reads")
figure.colorbar(image, ax=axes, label="D")
figure.suptitle("The decay matrix of four heads: what a query still sees of a key")

# %% [markdown]
# ## The recurrent form (Eq. 6)
#
# The same sum, taken apart by its last term. What remains is the sum of the token before, times
# $\gamma$:
#
# $$S_n = \gamma S_{n-1} + K_n^\top V_n, \qquad \mathrm{Retention}(X_n) = Q_n S_n$$
#
# The state is a matrix of $K \times V$ numbers for each head. It is written before it is read, and
# it never grows: this is what to write text with. The pseudo-code of the paper's Figure 4 gives
# `q`, `k` and `v` an axis for the length here, with which it does not run.

# %%
gammas = log_decay.exp()[:, None, None]
S, outputs = torch.zeros(B, H, K, V), []
for n in range(T):
    S = gammas * S + torch.einsum("bhk,bhv->bhkv", k[:, n], v[:, n])
    outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, n], S))
by_equation_6 = torch.stack(outputs, dim=1)

recurrent, last = retention_recurrent(q, k, v, log_decay)
same(recurrent, by_equation_6)
same(last, S)
same(recurrent, parallel)
same(last, state)

# %% [markdown]
# ## The chunkwise form (Eq. 7)
#
# Both at once: within a chunk of $B$ tokens as in parallel, from chunk to chunk as in recurrence. A
# token of chunk $i$ sees its own chunk through $D$, and all chunks before through one state, which
# has faded by one more step for each token of the chunk that was read before it:
#
# $$R_i = K_{[i]}^\top (V_{[i]} \odot \zeta) + \gamma^B R_{i-1}, \qquad \zeta_j = \gamma^{\,B-1-j}$$
#
# $$\mathrm{out}_{[i]} = (Q_{[i]} K_{[i]}^\top \odot D)\,V_{[i]} + (Q_{[i]} R_{i-1}) \odot \xi,
# \qquad \xi_j = \gamma^{\,j+1}$$
#
# Here $j = 0 \dots B-1$ counts rows in the chunk. $\zeta$ is how much of a token is left at its
# chunk's end, $\xi$ how much of the chunks before is left at a token. Time and memory grow with the
# length, not with its square: this is what to train long sequences with, and to read long prompts
# with.

# %%
size = 6
j = torch.arange(size)
D_chunk = D[:, :size, :size]
xi = torch.exp(log_decay[:, None] * (j + 1))  # [H, B]
zeta = torch.exp(log_decay[:, None] * (size - 1 - j))
chunks = [slice(start, start + size) for start in range(0, T, size)]

R, outputs = torch.zeros(B, H, K, V), []
for chunk in chunks:
    Q_i, K_i, V_i = (x[:, chunk].transpose(1, 2) for x in (q, k, v))  # [B, H, size, .]
    inner = (Q_i @ K_i.mT * D_chunk) @ V_i
    cross = (Q_i @ R) * xi[..., None]
    outputs.append((inner + cross).transpose(1, 2))
    R = K_i.mT @ (V_i * zeta[..., None]) + gammas**size * R
by_equation_7 = torch.cat(outputs, dim=1)

chunkwise, last = retention_chunkwise(q, k, v, log_decay, chunk_size=size)
same(chunkwise, by_equation_7)
same(last, R)
same(chunkwise, parallel)

# %% [markdown]
# ### Why the pseudo-code of Figure 4 is wrong from the second chunk on
#
# Figure 4 updates the state as `chunk_decay * past_kv + k^T v`. There is no $\zeta$ in it: each
# token of a chunk would enter the state as if it were the last. The text's equation has had it
# since version 4; versions before lack it there too. The first chunk comes out right, since nothing
# is read of a state yet, which is why it is easily missed.

# %%


def figure_4(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The paper's pseudo-code of the chunkwise form, but for the norm at its end."""
    past_kv, outputs = torch.zeros(B, H, K, V), []
    for chunk in chunks:
        Q_i, K_i, V_i = (x[:, chunk].transpose(1, 2) for x in (q, k, v))
        inner = (Q_i @ K_i.mT * D_chunk) @ V_i
        cross = (Q_i @ past_kv) * xi[..., None]
        outputs.append((inner + cross).transpose(1, 2))
        past_kv = gammas**size * past_kv + K_i.mT @ V_i  # zeta is missing
    return torch.cat(outputs, dim=1)


wrong = figure_4(q, k, v)
same(wrong[:, :size], parallel[:, :size])
error = (wrong - parallel).abs().amax(dim=(0, 2, 3)) / parallel.abs().max()
assert error[size:].min() > 1e-3
print("largest error of each chunk:", *(f"{error[chunk].max():.1e}" for chunk in chunks))

# %% [markdown]
# ## Where s_0 goes
#
# Each form takes a state and returns one, and what a state adds to token $n$ follows from Eq. 6:
# $\gamma^{\,n+1} Q_n S_0$, with $n$ counted from 0. So a sequence may be cut anywhere, each piece
# may be computed in another form, and the last state of one is the first of the next.

# %%
head, middle, tail = ([x[:, part] for x in (q, k, v)] for part in map(slice, (0, 7, 8), (7, 8, T)))
out_a, state_a = retention_parallel(*head, log_decay)
out_b, state_b = retention_recurrent(*middle, log_decay, state_a)
out_c, state_c = retention_chunkwise(*tail, log_decay, state_b, chunk_size=5)
same(torch.cat([out_a, out_b, out_c], dim=1), parallel)
same(state_c, state)

# %% [markdown]
# As the state is a sum, two pieces may even be read at the same time, each from zero, and their
# states added: what the first has left, faded by the length of the second, and the second's.

# %%
_, first = retention_chunkwise(*(x[:, :10] for x in (q, k, v)), log_decay)
_, second = retention_chunkwise(*(x[:, 10:] for x in (q, k, v)), log_decay)
same(combine_states(first, second, log_decay, T - 10), state)

# %% [markdown]
# A state fills up, and then stays as large as it is: what comes in is as much as what fades away. A
# head with a slow decay takes longer and holds more.

# %%
length = 1_000
many = [normal(1, length, H, size) for size in (K, K, V)]
norms, grown = [], None
for start in range(0, length, 10):
    piece = [x[:, start : start + 10] for x in many]
    _, grown = retention_chunkwise(*piece, log_decay, grown)
    norms.append(grown.norm(dim=(2, 3))[0])
lasting = (K * V / (1 - torch.exp(2 * log_decay))).sqrt()  # as many independent terms, faded

figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
for head_norms, each, limit in zip(torch.stack(norms).T, log_decay.exp(), lasting, strict=True):
    (line,) = axis.plot(range(10, length + 1, 10), head_norms, label=f"γ = {each:.4g}")
    axis.axhline(limit, color=line.get_color(), linewidth=0.8, linestyle=":")
axis.set(
    xlabel="tokens read", ylabel="norm of the state", title="The state of four heads, filling up"
)
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
assert all(abs(norms[-1] / lasting - 1) < 0.35)

# %% [markdown]
# ## Decays: how far a head sees (Eq. 8)
#
# Each head has its own decay, the same in all layers, and none is learned:
#
# $$\gamma = 1 - 2^{-5-\mathrm{arange}(0, h)}$$
#
# Section 3.1 says that the experiments used another rule,
# $\gamma = 1 - e^{\mathrm{linspace}(\log 1/32, \log 1/512, h)}$, so that all sizes of models have
# the same range. Both rules are the same for five heads and for no other number. `decay` in
# `ModelConfig` is `"equation8"` or `"linspace"`.

# %%
h = 4
equation8 = 1 - 2.0 ** (-5 - torch.arange(h))
linspace = 1 - torch.exp(torch.linspace(*torch.tensor([1 / 32, 1 / 512]).log().tolist(), h))
same(log_decays("equation8", h).exp(), equation8)
same(log_decays("linspace", h).exp(), linspace)
same(log_decays("equation8", 5), log_decays("linspace", 5))
assert (log_decays("equation8", 16) - log_decays("linspace", 16)).abs().max() > 1e-3

# %% [markdown]
# What is left of a token after $n$ more is $\gamma^n$, half of it after
# $\log \tfrac12 / \log \gamma$. By the linspace rule no head halves what it knows in fewer than 22
# tokens, and none keeps half for more than 355. Texts in bytes want faster ones too: `"wide"`
# begins at 1/2 (see [the evidence](evidence.md)).

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained", sharey=True)
distance = torch.arange(2_000)
for axis, rule in zip(axes, ("linspace", "wide"), strict=True):
    for each in log_decays(rule, 8):
        half = torch.log(torch.tensor(0.5)) / each
        axis.plot(distance, torch.exp(each * distance), label=f"{half:.3g}")
    axis.set(
        xscale="symlog", xlim=(0, 2_000), xlabel="tokens since", title=f'decay "{rule}", 8 heads'
    )
    axis.legend(title="half-life", fontsize=8)
axes[0].set_ylabel("what is left of a token")

fastest, slowest = log_decays("linspace", 8)[[0, -1]]
assert 21 < torch.log(torch.tensor(0.5)) / fastest < 23
assert 354 < torch.log(torch.tensor(0.5)) / slowest < 356

# %% [markdown]
# A trap: bf16 has 8 bits for a number's digits, and the largest number below 1 is $1 - 2^{-8}$. So
# a decay of 511/512 kept in bf16, as a module's buffer would be after `.to(torch.bfloat16)`, is 1:
# the head never forgets. Here decays are computed from the configuration when they are used, in
# fp64.

# %%
assert torch.tensor(511 / 512).to(torch.bfloat16) == 1
assert not list(RetNet(preset("tiny")).buffers())

# %% [markdown]
# ## Three normalisers, and why they cancel
#
# Section 2.2 divides three times: $QK^\top$ by $\sqrt{d}$, each row of $D$ by the square root of
# its sum, and each row of the scores $R = QK^\top \odot D$ by $\max(|\sum_m R_{nm}|, 1)$. Each time
# a whole row of a head is divided by one positive number, and the norm that follows divides by the
# row's size anyway:
#
# $$\mathrm{GroupNorm}(\alpha \cdot \mathrm{head}) = \mathrm{GroupNorm}(\mathrm{head})$$

# %%
n = torch.arange(T)
scores = torch.einsum("bnhk,bmhk->bhnm", q, k) / K**0.5
scores = scores * (D / D.sum(dim=-1, keepdim=True).sqrt())
scores = scores / scores.sum(dim=-1, keepdim=True).abs().clamp(min=1)
normalised = torch.einsum("bhnm,bmhv->bnhv", scores, v)


def head_norm(x: Tensor, eps: float) -> Tensor:
    """Of each token and each head by itself."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


same(head_norm(normalised, eps=0), head_norm(parallel, eps=0))

# %% [markdown]
# Exactly so only if the norm adds nothing to what it divides by. With the usual 1e-5, rows that are
# small come out otherwise, and many reports that "recurrent is not parallel" are this: one form
# with normalisers, one without.

# %%
small = 0.05 / parallel.std()  # outputs of an untrained layer are about 0.05
with_eps = [head_norm(small * x, eps=1e-5) for x in (normalised, parallel)]
print(f"largest difference with eps 1e-5: {(with_eps[0] - with_eps[1]).abs().max():.2g}")
assert (with_eps[0] - with_eps[1]).abs().max() > 1e-3

# %% [markdown]
# So either all forms have them or none. The three are one division: let $r_n = \sum_m R_{nm}$ be of
# scores that were only scaled by $K^{-1/2}$, and $Z_n = \sum_{i \le n} \gamma^i$. Then the output
# is $o_n / \max(|r_n|, \sqrt{Z_n})$. $Z_n$ follows from the position alone, and $r_n$ is what
# retention makes of a column of ones beside $V$, in every form and through the state. In
# `ModelConfig` that is `score_norm="paper"`; the default, `"none"`, leaves them out.

# %%
Z = decay_sum(log_decay, n)  # [T, H]
same(Z.T, D.sum(dim=-1))
with_ones = F.pad(v, (0, 1), value=1.0)
together, _ = retention_chunkwise(q, k / K**0.5, with_ones, log_decay, chunk_size=7)
o, r = together[..., :-1], together[..., -1:]
same(o / torch.maximum(r.abs(), Z.sqrt()[..., None]), normalised)

# %% [markdown]
# ## Why the norm over a head leaks nothing from the future
#
# The paper calls it GroupNorm and means: of one token and one head. `torch.nn.GroupNorm`, given
# channels and a length as it usually is, takes its mean over the length too, and then a token's
# output depends on the tokens after it. Change the last token, and see who notices:

# %%
changed = parallel.clone()
changed[:, -1] += 1

per_token = [head_norm(x, eps=1e-5) for x in (parallel, changed)]
assert torch.equal(per_token[0][:, :-1], per_token[1][:, :-1])

over_length = torch.nn.GroupNorm(H, H * V)
leaking = [over_length(x.flatten(2).transpose(1, 2)) for x in (parallel, changed)]
assert not torch.allclose(leaking[0][..., :-1], leaking[1][..., :-1])

# %% [markdown]
# ## Gated multi-scale retention (Eq. 8)
#
# $$\mathrm{MSR}(X) = (\mathrm{swish}(X W_G) \odot Y)\,W_O, \qquad
# Y = \mathrm{GroupNorm}_h(\mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h))$$
#
# Eq. 8 prints $W_G$ and $W_O$ as square. By section 3.1 values, and with them the gate, are twice
# as wide as queries and keys: $W_Q, W_K$ are $d \times d$, $W_V, W_G$ are $d \times 2d$, $W_O$ is
# $2d \times d$. That is $8d^2$, and with a feed forward of $2d$ it is $12d^2$, what a Transformer's
# layer has.

# %%
config = ModelConfig(vocab_size=259, d_model=32, num_layers=2, num_heads=4, decay="equation8")
layer = MultiScaleRetention(config)
x = normal(B, T, config.d_model)
context = make_context(
    config, n[None], mask=None, segment_ids=None, retain=retention_parallel, dtype=x.dtype
)

heads = (-1, config.key_size)
Q = rotate(layer.q_proj(x).unflatten(-1, heads), context.query_rotation, config.rotary_pairing)
K_ = rotate(layer.k_proj(x).unflatten(-1, heads), context.query_rotation, config.rotary_pairing)
V_ = layer.v_proj(x).unflatten(-1, (-1, config.value_size))
scores = torch.einsum("bnhk,bmhk->bhnm", Q, K_) / config.key_size**0.5 * D
Y = head_norm(torch.einsum("bhnm,bmhv->bnhv", scores, V_), config.head_norm_eps).flatten(2)
same(layer(x, context)[0], (F.silu(layer.g_proj(x)) * Y) @ layer.out_proj.weight.T)

# %% [markdown]
# ## The block and the model (Eq. 9)
#
# $$Y^l = \mathrm{MSR}(\mathrm{LN}(X^l)) + X^l, \qquad
# X^{l+1} = \mathrm{FFN}(\mathrm{LN}(Y^l)) + Y^l,$$
#
# $$\mathrm{FFN}(X) = \mathrm{gelu}(X W_1)\,W_2$$
#
# The same frame as a Transformer's. $X^0$ are the embeddings of tokens; nothing else is added for
# positions.

# %%
block = RetNetBlock(config)
Y = block.mixer(block.mixer_norm(x), context)[0] + x
ffn = block.feed_forward
expected = F.gelu(block.feed_forward_norm(Y) @ ffn.up_proj.weight.T) @ ffn.down_proj.weight.T + Y
same(block(x, context)[0], expected)

matrices = sum(weight.numel() for weight in block.parameters() if weight.dim() == 2)
assert matrices == 12 * config.d_model**2 == config.layer_parameters

# %% [markdown]
# And so the whole model has three forms too. In parallel for training, in recurrence for writing,
# chunkwise for what is long:

# %%
model = RetNet(config, generator=random)
tokens = torch.randint(256, (B, 50), generator=random)
at_once, state_at_once = model(tokens, retain=retention_parallel)
in_chunks, _ = model(tokens, retain=partial(retention_chunkwise, chunk_size=16))
one_by_one, running = [], None
for n in range(50):
    logits, running = model(tokens[:, n : n + 1], running, retain=retention_recurrent)
    one_by_one.append(logits)
same(in_chunks, at_once)
same(torch.cat(one_by_one, dim=1), at_once)
for ours, theirs in zip(running.layers, state_at_once.layers, strict=True):
    same(ours, theirs)

# %% [markdown]
# ## What each form costs
#
# Multiplications and additions of one head, for each token: in parallel they grow with the length,
# in recurrence they don't depend on it, and chunkwise they depend on the chunk. Chunks cost more
# than recurrence and are what to use nevertheless: their work is products of matrices, which is
# what machines are good at, where recurrence reads and writes a whole state for each token.

# %%


def counted(form: object, length: int, *chunk: int) -> float:
    """Operations a token of the reference, as torch counts them."""
    q, k, v = (normal(1, length, 1, size) for size in (K, K, V))
    state = torch.zeros(1, 1, K, V)
    with FlopCounterMode(display=False) as counter:
        form(q, k, v, log_decays("equation8", 1), state, None, *chunk)
    return counter.get_total_flops() / length


def of_chunks(length: int) -> int:
    """With chunks this long: scores and their products, and the state, read and written."""
    return 2 * length * (K + V) + 4 * K * V


K, V = 256, 512
assert counted(reference.retention_parallel, 1_024) == of_chunks(1_024)
assert counted(reference.retention_chunkwise, 1_024, 128) == of_chunks(128)

lengths = [2**power for power in range(7, 18)]
costs = {
    "parallel": [of_chunks(length) for length in lengths],
    "chunkwise, 128": [of_chunks(128) for _ in lengths],
    "recurrent": [5 * K * V for _ in lengths],
}
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
for name, values in costs.items():
    axis.plot(lengths, values, marker="o", label=name)
axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel="operations a token")
axis.set_title("One head of the paper's size (K 256, V 512)")
axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))

# %% [markdown]
# What that comes to in seconds and in bytes is measured in [the evidence](evidence.md). How the
# fast path does it is told on the first page of
# [`torch_chunkwise.py`](../retnet/ops/torch_chunkwise.py).
