"""The sizes and switches of a GPT, checked."""

from __future__ import annotations

from dataclasses import dataclass

from gptlab.system.errors import UserError

GATED = ("swiglu", "geglu")
CHOICES: dict[str, tuple[str | None, ...]] = {
    "norm": ("layernorm", "rmsnorm", "none"),
    "norm_place": ("pre", "post"),
    "pos": ("learned", "rope", "alibi", "sinusoidal", "none"),
    "mlp": ("gelu", "gelu_exact", "relu", "relu2", *GATED, "none"),
    "attention": ("sdpa", "manual", "per_head", "none"),
    "init": ("gpt2", "torch"),
    "rope_scaling": (None, "linear", "llama3", "yarn"),
}
AT_LEAST_ONE = (
    *("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "head_dim", "n_kv_head", "n_inner", "window"),
    "rope_original_size",
)
ABOVE_ZERO = (
    *("norm_eps", "logit_softcap", "rope_base", "rope_factor", "rope_low_freq_factor", "rope_high_freq_factor"),
    *("rope_beta_slow", "rope_beta_fast", "rope_attention_factor"),
)
OF_SCALINGS: dict[str, tuple[float | None, tuple[str, ...]]] = {
    "rope_factor": (1.0, ("linear", "llama3", "yarn")),
    "rope_original_size": (None, ("llama3", "yarn")),
    "rope_low_freq_factor": (1.0, ("llama3",)),
    "rope_high_freq_factor": (4.0, ("llama3",)),
    "rope_beta_slow": (1.0, ("yarn",)),
    "rope_beta_fast": (32.0, ("yarn",)),
    "rope_attention_factor": (None, ("yarn",)),
}
"""The default of each field that scales rotary positions, and the values of rope_scaling that read it."""


@dataclass(frozen=True)
class GPTConfig:
    vocab_size: int
    block_size: int = 1024
    """The longest sequence; with learned positions, also their number."""
    n_layer: int = 12
    n_head: int = 12
    n_kv_head: int | None = None
    """Key and value heads, each shared by n_head / n_kv_head query heads; None: n_head; 1: multi-query attention."""
    n_embd: int = 768
    head_dim: int | None = None
    """Size of a head; None: n_embd / n_head."""
    n_inner: int | None = None
    """Width of the mlp's hidden layer; None: see `hidden`."""
    dropout: float = 0.0
    """Probability of dropout, where GPT-2 has it: embeddings, attention weights, residual branches."""
    attn_dropout: float | None = None
    """Dropout of the attention weights; None: as `dropout`. On a CPU its cost grows with block_size squared."""
    bias: bool = True
    """Biases in the linear layers and LayerNorms of the blocks."""
    qkv_bias: bool | None = None
    """Bias of the query, key and value projection; None: as `bias`."""
    tied: bool = True
    """The head shares its matrix with the token embedding."""
    head_bias: bool = False
    norm: str = "layernorm"
    """layernorm, rmsnorm or none."""
    norm_place: str = "pre"
    """pre (before each branch, and once before the head) or post (after each residual sum, as in GPT-1)."""
    norm_weight: bool = True
    """The norms have learned scales."""
    norm_eps: float = 1e-5
    embed_norm: bool = False
    """Normalise the embeddings, too, as in BLOOM (https://arxiv.org/abs/2211.05100)."""
    pos: str = "learned"
    """learned, sinusoidal (tokens scaled by sqrt(n_embd), as in Vaswani et al. 2017), rope, alibi or none."""
    rope_base: float = 10_000.0
    rope_fraction: float = 1.0
    """The part of each head that turns, its first columns; the others know no positions, as in GPT-NeoX."""
    rope_scaling: str | None = None
    """How rotary positions are slowed down, so that a longer text stays within what was learned.

    None, linear (all by rope_factor: https://arxiv.org/abs/2306.15595), llama3 (Llama 3.1's: pairs that turn fewer
    than rope_low_freq_factor times in rope_original_size positions by rope_factor, those that turn more than
    rope_high_freq_factor times not at all, and those between by something between), or yarn (Peng et al. 2023,
    https://arxiv.org/abs/2309.00071: the same between rope_beta_slow and rope_beta_fast, in other steps, and scores
    that are larger).
    """
    rope_factor: float = 1.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_size: int | None = None
    """The longest sequence before llama3 or yarn: original_max_position_embeddings in a config.json."""
    rope_beta_slow: float = 1.0
    rope_beta_fast: float = 32.0
    rope_attention_factor: float | None = None
    """By what yarn multiplies rotated queries and keys; None: 0.1 ln(rope_factor) + 1, and 1 for a factor below 1."""
    mlp: str = "gelu"
    """gelu (the tanh approximation, as GPT-2), gelu_exact (as nanoGPT), relu, relu2, swiglu, geglu, none (no mlp)."""
    mlp_proj: bool = True
    """Project after the activation; without the projection the hidden layer is n_embd wide."""
    attention: str = "sdpa"
    """sdpa (fused kernels), manual (written out) or per_head (a loop), with equal results; or none (no attention)."""
    attn_proj: bool = True
    """Project the concatenated heads."""
    attn_scale: bool = True
    """Divide the scores by sqrt(head size)."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys."""
    window: int | None = None
    """A position attends to itself and the window - 1 positions before it; None: to all before it."""
    conv: int | None = None
    """A causal depthwise convolution over `conv` positions in front of attention and mlp; None: none."""
    residual: bool = True
    parallel: bool = False
    """Attention and mlp read the same norm, and their outputs are added."""
    parallel_norms: bool = False
    """Side by side, attention and mlp have a norm each, as in GPT-NeoX."""
    logit_softcap: float | None = None
    """Logits become cap * tanh(logits / cap), as in Gemma 2."""
    init: str = "gpt2"
    """gpt2 (normal, 0.02, residual projections scaled down with depth) or torch (the layers' own, as the lessons)."""
    zero_init: bool = False
    """The blocks' output projections, and an untied head, start at zero."""
    gradient_checkpointing: bool = False
    """Recompute each block's activations in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        for field in AT_LEAST_ONE:
            value = getattr(self, field)
            if value is not None and value < 1:
                raise UserError(f"model.{field}={value}: must be at least 1")
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise UserError(
                    f"model.{field}={getattr(self, field)}: must be one of {', '.join(c or 'null' for c in choices)}"
                )
        for field in ABOVE_ZERO:
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise UserError(f"model.{field}={value}: must be above 0")
        if self.conv is not None and not 2 <= self.conv <= self.block_size:
            raise UserError(
                f"model.conv={self.conv}: must be at least 2 and at most block_size={self.block_size}, or null"
            )
        for field in ("dropout", "attn_dropout"):
            value = getattr(self, field)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"model.{field}={value}: must be at least 0 and below 1")
        self._check_heads()
        self._check_rope_scaling()
        if not self.has_attention and not self.has_mlp:
            raise UserError("model.attention=none and model.mlp=none leave nothing of the blocks: see model=bigram")
        if self.parallel and not (self.has_attention and self.has_mlp):
            raise UserError("model.parallel=true needs both attention and mlp, and one of them is none")
        if self.parallel_norms and not (self.parallel and self.norm_place == "pre"):
            raise UserError("model.parallel_norms=true needs model.parallel=true and model.norm_place=pre")
        if self.zero_init and not self.residual:
            raise UserError("model.zero_init=true without model.residual never learns: nothing but zeros goes through")
        if not self.mlp_proj and self.n_inner not in (None, self.n_embd):
            raise UserError(
                f"model.n_inner={self.n_inner}: without model.mlp_proj the hidden layer is n_embd={self.n_embd} wide; "
                f"leave n_inner out"
            )

    def _check_heads(self) -> None:
        if self.head_dim is None and self.n_embd % self.n_head:
            raise UserError(
                f"model.n_embd={self.n_embd} is not divisible by model.n_head={self.n_head}: "
                f"choose n_head among {[h for h in range(1, 65) if self.n_embd % h == 0]}, or a model.head_dim"
            )
        if self.n_head % self.kv_heads:
            raise UserError(
                f"model.n_head={self.n_head} is not divisible by model.n_kv_head={self.n_kv_head}: "
                f"choose n_kv_head among {[k for k in range(1, self.n_head + 1) if self.n_head % k == 0]}"
            )
        if not 0 < self.rope_fraction <= 1:
            raise UserError(f"model.rope_fraction={self.rope_fraction}: must be above 0 and at most 1")
        if self.rope_fraction < 1 and self.pos != "rope":
            raise UserError(
                f"model.rope_fraction={self.rope_fraction}: the part of a head that turns, and this is "
                f"model.pos={self.pos}; add model.pos=rope"
            )
        if self.pos == "rope" and (self.rotary_size % 2 or not self.rotary_size):
            source = "n_embd / n_head" if self.head_dim is None else "head_dim"
            part = "" if self.rope_fraction == 1 else f" times rope_fraction={self.rope_fraction}"
            raise UserError(
                f"model.pos=rope turns pairs, and {source}{part} = {self.rotary_size} is "
                f"{'odd' if self.rotary_size else 'nothing'}: choose another n_head, n_embd or head_dim"
            )
        if self.has_attention and not self.attn_proj and self.attn_width != self.n_embd:
            raise UserError(
                f"model.head_dim={self.head_dim}: {self.n_head} heads are {self.attn_width} wide, and without "
                f"model.attn_proj they must be n_embd={self.n_embd} wide; leave head_dim out"
            )

    def _check_rope_scaling(self) -> None:
        if self.rope_scaling is not None and self.pos != "rope":
            raise UserError(
                f"model.rope_scaling={self.rope_scaling}: scales rotary positions, and this is model.pos={self.pos}; "
                f"add model.pos=rope"
            )
        for field, (default, scalings) in OF_SCALINGS.items():
            if self.rope_scaling not in scalings and getattr(self, field) != default:
                raise UserError(
                    f"model.{field}={getattr(self, field)}: needs model.rope_scaling={' or '.join(scalings)}"
                )
        if self.rope_scaling not in ("llama3", "yarn"):
            return
        if self.rope_original_size is None:
            raise UserError(
                f"model.rope_scaling={self.rope_scaling} needs model.rope_original_size, the longest sequence before "
                f"the scaling, e.g. 8192"
            )
        low, high = {
            "llama3": ("rope_low_freq_factor", "rope_high_freq_factor"),
            "yarn": ("rope_beta_slow", "rope_beta_fast"),
        }[self.rope_scaling]
        if getattr(self, high) <= getattr(self, low):
            raise UserError(f"model.{high}={getattr(self, high)}: must be above model.{low}={getattr(self, low)}")
        if self.rope_scaling == "yarn" and self.rope_base <= 1:
            raise UserError(f"model.rope_base={self.rope_base}: must be above 1 for model.rope_scaling=yarn")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head if self.head_dim is None else self.head_dim

    @property
    def rotary_size(self) -> int:
        """How many columns of a head turn."""
        return int(self.head_size * self.rope_fraction)

    @property
    def attn_width(self) -> int:
        """The width of all heads side by side, which the projection after attention brings back to n_embd."""
        return self.n_head * self.head_size

    @property
    def slides(self) -> bool:
        """Whether a text may be longer than block_size: positions are relative, or there are none."""
        return self.pos not in ("learned", "sinusoidal")

    @property
    def has_qkv_bias(self) -> bool:
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def has_attention(self) -> bool:
        return self.attention != "none"

    @property
    def has_mlp(self) -> bool:
        return self.mlp != "none"

    @property
    def drop_rates(self) -> list[float]:
        """The dropout rates: embeddings; then, for each block, attention weights, attention branch, mlp branch."""
        attn = self.dropout if self.attn_dropout is None else self.attn_dropout
        return [self.dropout, *[attn, self.dropout, self.dropout] * self.n_layer]

    @property
    def kv_heads(self) -> int:
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def hidden(self) -> int:
        """The width of the mlp's hidden layer: 4 n_embd; gated, 8/3 n_embd rounded to a multiple of 8.

        A gated mlp has three matrices instead of two, so both kinds have about the same number of parameters.
        """
        if self.n_inner is not None:
            return self.n_inner
        if not self.mlp_proj:
            return self.n_embd
        return max(round(self.n_embd / 3), 1) * 8 if self.mlp in GATED else 4 * self.n_embd

    @property
    def stacked(self) -> dict[str, tuple[int, ...]]:
        """The row counts of the projections in each layer that stacks several in one matrix, by the layer's name."""
        kv_width = self.kv_heads * self.head_size
        qkv = {"c_attn": (self.attn_width, kv_width, kv_width)}
        return qkv | ({"c_fc": (self.hidden, self.hidden)} if self.mlp in GATED else {})
