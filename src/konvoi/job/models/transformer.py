"""The module behind models.gpt: exactly the Llama architecture, in plain PyTorch."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from konvoi.errors import JobError
from konvoi.job.models.gpt import GPT, INIT_STD, NORM_EPS, Shape


class Transformer(nn.Module):
    """`(batch, seq)` token ids to `(batch, seq, vocab)` logits.

    Holds no buffers: the rotary tables are made anew in each forward, (seq, head_dim/2) of them, which costs less than
    one norm, and leaves nothing to be materialised, cast or sharded wrongly.
    """

    tp_plan: ClassVar[dict[str, str]] = {  # Megatron-LM, arXiv 1909.08053 section 3
        "embed": "embedding_rowwise",
        "blocks.*.attention.q": "colwise",
        "blocks.*.attention.k": "colwise",
        "blocks.*.attention.v": "colwise",
        "blocks.*.attention.o": "rowwise",
        "blocks.*.mlp.gate": "colwise",
        "blocks.*.mlp.up": "colwise",
        "blocks.*.mlp.down": "rowwise",
        "head": "colwise",
    }

    def __init__(self, recipe: GPT) -> None:
        super().__init__()
        if recipe.vocab_size is None:
            raise JobError(
                "gpt does not know its vocabulary",
                found="vocab_size=None",
                hint="set gpt(vocab_size=...), or let fit(spec) take it from the data",
            )
        shape = recipe.shape
        self.depth, self.head_dim, self.rope_theta = shape.depth, shape.head_dim, recipe.rope_theta
        # Given its weight, it does not draw one: on `meta` that would load torch's compiler, a second's work.
        weight = torch.empty(recipe.vocab_size, shape.width)
        self.embed = nn.Embedding(recipe.vocab_size, shape.width, _weight=weight)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.RMSNorm(shape.width, eps=NORM_EPS)
        self.head = nn.Linear(shape.width, recipe.vocab_size, bias=False)
        if recipe.tie_embeddings:
            self.head.weight = self.embed.weight
        if not self.embed.weight.is_meta:  # whoever builds on meta fills it later, module by module
            for name, module in self.named_modules():
                self.init_module(name, module, None)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """`attention_mask` (batch, seq): 0 where there is padding. `position_ids` (seq,) or (batch, seq): 0, 1, 2, ...

        Both as in transformers: positions are not derived from the mask.
        """
        x = self.embed(input_ids)  # (batch, seq, width)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[-1], device=x.device)
        cos, sin = rotary_tables(position_ids, self.head_dim, self.rope_theta, x.dtype)
        mask = None if attention_mask is None else causal_mask(attention_mask)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        logits: Tensor = self.head(self.norm(x))
        return logits

    @torch.no_grad()
    def init_module(self, name: str, module: nn.Module, generator: torch.Generator | None) -> None:
        """Normal with std 0.02; what writes into the residual stream is scaled by 1/sqrt(2 depth), as each of the
        depth blocks adds to it twice (GPT-2, Radford et al. 2019, section 2.3). `generator` is on the weights' device.
        """
        if isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            writes_residual = name.endswith((".attention.o", ".mlp.down"))
            scale = (2 * self.depth) ** -0.5 if writes_residual else 1.0
            nn.init.normal_(module.weight, std=INIT_STD * scale, generator=generator)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width, eps=NORM_EPS)
        self.attention = Attention(shape)
        self.mlp_norm = nn.RMSNorm(shape.width, eps=NORM_EPS)
        self.mlp = SwiGLU(shape.width, shape.mlp_width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, mask)
        out: Tensor = x + self.mlp(self.mlp_norm(x))  # (batch, seq, width)
        return out


class Attention(nn.Module):
    """Causal self-attention, grouped queries (arXiv 2305.13245): each kv head serves num_heads/num_kv_heads queries."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim, self.num_heads, self.num_kv_heads = shape.head_dim, shape.num_heads, shape.num_kv_heads
        self.q = nn.Linear(shape.width, shape.num_heads * shape.head_dim, bias=False)
        self.k = nn.Linear(shape.width, shape.num_kv_heads * shape.head_dim, bias=False)
        self.v = nn.Linear(shape.width, shape.num_kv_heads * shape.head_dim, bias=False)
        self.o = nn.Linear(shape.num_heads * shape.head_dim, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        batch, seq, _ = x.shape
        q, k, v = (  # (batch, heads or kv_heads, seq, head_dim)
            project(x).view(batch, seq, -1, self.head_dim).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(
            rotate(q, cos, sin),
            rotate(k, cos, sin),
            v,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        out: Tensor = self.o(y.transpose(1, 2).reshape(batch, seq, -1))
        return out


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))` (arXiv 2002.05202 equation 6)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


def rotary_tables(position_ids: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of `position * theta^(-2i/head_dim)` (arXiv 2104.09864 equation 15).

    From (seq,) to two of (seq, head_dim/2); from (batch, seq) to (batch, 1, seq, head_dim/2). Computed in at least
    float32: bfloat16 cannot tell position 256 from 257. (FSDP's mixed precision may cast the finished tables on their
    way into a block, which costs three digits of an angle's cosine and not the position.)
    """
    dtype = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, head_dim, 2, dtype=dtype, device=position_ids.device) / head_dim
    angles = position_ids[..., None].to(dtype) * (1.0 / theta**exponents)
    if angles.dim() == 3:
        angles = angles.unsqueeze(1)  # the same for every head
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + head_dim/2]): transformers' half-rotation, not the paper's neighbours.

    In the tables' dtype, and back to that of `x` (batch, heads, seq, head_dim): under autocast q is bfloat16.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def causal_mask(attention_mask: Tensor) -> Tensor:
    """(batch, seq), nonzero where a token counts, to (batch, 1, seq, seq), true where a query sees a key.

    A token always sees itself: a row without any key, as left padding has, would be a softmax over nothing.
    """
    seq = attention_mask.shape[-1]
    sees = torch.ones(seq, seq, dtype=torch.bool, device=attention_mask.device).tril()
    itself = torch.eye(seq, dtype=torch.bool, device=attention_mask.device)
    return ((attention_mask.bool()[:, None, :] & sees) | itself).unsqueeze(1)
