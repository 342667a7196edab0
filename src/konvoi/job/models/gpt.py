"""The recipe of a GPT: one dial, `depth`, from which the rest is derived. Torch is imported only to build it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING

from konvoi.errors import JobError
from konvoi.values import DataSpec

if TYPE_CHECKING:
    from konvoi.job.models.transformer import Transformer

WIDTH_PER_LAYER = 64  # nanochat's aspect ratio (scripts/base_train.py)
HEAD_DIM = 64  # Llama 3.2 1B and GPT-2; nanochat takes 128, which leaves too few heads to small models
MLP_MULTIPLE = 32  # matrix units like multiples of 32
NORM_EPS = 1e-6  # LlamaConfig's default
INIT_STD = 0.02  # GPT-2's and LlamaConfig's


@dataclass(frozen=True)
class Shape:
    """Every size of a GPT, none left open but what the data decides."""

    depth: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_width: int


@dataclass(frozen=True)
class GPT:
    """A decoder-only transformer of the Llama architecture; what is None is derived from `depth` or from the data.

    Pre-RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases (arXiv 2302.13971 section 2.2), so that
    its weights load into `LlamaForCausalLM` (see llama_names.py). `seq_len` limits nothing: it is what an export
    states as the longest sequence trained on.

    Raises: JobError for sizes that cannot be.

    >>> gpt(depth=6).shape
    Shape(depth=6, width=384, num_heads=6, num_kv_heads=6, head_dim=64, mlp_width=1024)
    >>> gpt(depth=2, width=96).derived()[0]
    '1. head_dim = the largest even divisor of width = 96 up to 64 = 48 (Llama 3.2)'
    """

    depth: int = 6
    _: KW_ONLY
    width: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    seq_len: int | None = None
    mlp_width: int | None = None
    tie_embeddings: bool = False
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        for name in ("depth", "width", "num_heads", "num_kv_heads", "head_dim", "vocab_size", "seq_len", "mlp_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise JobError(f"gpt: {name} is too small", found=value, expected="at least 1")
        _check(self.shape)

    @property
    def shape(self) -> Shape:
        width = self.width or WIDTH_PER_LAYER * self.depth
        head_dim = self.head_dim or self._head_dim(width)
        num_heads = self.num_heads or _divide(width, head_dim, "width", "head_dim")
        return Shape(
            depth=self.depth,
            width=width,
            num_heads=num_heads,
            num_kv_heads=self.num_kv_heads or num_heads,
            head_dim=head_dim,
            mlp_width=self.mlp_width or _round_up(8 * width / 3, MLP_MULTIPLE),
        )

    def _head_dim(self, width: int) -> int:
        if self.num_heads is not None:
            return _divide(width, self.num_heads, "width", "num_heads")
        # Even, because rotary positions turn pairs of numbers.
        return next((dim for dim in range(HEAD_DIM, 0, -2) if width % dim == 0), 1)

    def derived(self) -> tuple[str, ...]:
        """One numbered line for each size that the user did not set: what it is, and from where.

        >>> print(*gpt(depth=2, vocab_size=256, seq_len=64).derived(), sep="\\n")
        1. width = 64 x depth = 128 (nanochat)
        2. head_dim = the largest even divisor of width = 128 up to 64 = 64 (Llama 3.2)
        3. num_heads = width / head_dim = 2
        4. num_kv_heads = num_heads = 2 (nanochat)
        5. mlp_width = 8/3 x width, up to a multiple of 32 = 352 (arXiv 2002.05202 section 2)
        """
        shape, from_heads = self.shape, self.num_heads is not None
        head_dim = (
            f"width / num_heads = {shape.head_dim}"
            if from_heads
            else f"the largest even divisor of width = {shape.width} up to {HEAD_DIM} = {shape.head_dim} (Llama 3.2)"
        )
        mlp_width = f"8/3 x width, up to a multiple of {MLP_MULTIPLE} = {shape.mlp_width} (arXiv 2002.05202 section 2)"
        rules = {
            "width": f"{WIDTH_PER_LAYER} x depth = {shape.width} (nanochat)",
            "head_dim": head_dim,
            "num_heads": f"width / head_dim = {shape.num_heads}",
            "num_kv_heads": f"num_heads = {shape.num_kv_heads} (nanochat)",
            "mlp_width": mlp_width,
            "vocab_size": "the data's, not known yet",
            "seq_len": "the data's, not known yet",
        }
        open_rules = [f"{name} = {rule}" for name, rule in rules.items() if getattr(self, name) is None]
        return tuple(f"{number}. {rule}" for number, rule in enumerate(open_rules, start=1))

    def fit(self, spec: DataSpec) -> GPT:
        """Take the vocabulary and the sequence length from the data; what the user has set stays.

        Raises: JobError where the data has no tokens, or more of them than the vocabulary that was set.
        """
        if spec.vocab_size is None and self.vocab_size is None:
            raise JobError(
                "gpt needs data made of tokens",
                found="data without a vocabulary",
                expected="e.g. data.text(...)",
                hint="models.cnn and models.mlp take images and tables; or set gpt(vocab_size=...)",
            )
        if self.vocab_size is not None and self.vocab_size < (spec.vocab_size or 0):
            raise JobError(
                "gpt: the vocabulary is smaller than the data's",
                found=f"vocab_size={self.vocab_size}",
                expected=f"at least {spec.vocab_size}",
                hint="leave vocab_size out, and it is taken from the data",
            )
        return replace(self, vocab_size=self.vocab_size or spec.vocab_size, seq_len=self.seq_len or spec.seq_len)

    def __call__(self) -> Transformer:
        """Raises: JobError where the vocabulary is not known."""
        from konvoi.job.models.transformer import Transformer

        return Transformer(self)


gpt = GPT


def _check(shape: Shape) -> None:
    if shape.head_dim % 2:
        raise JobError(
            "gpt: rotary positions turn pairs of numbers, and head_dim is odd",
            found=f"head_dim={shape.head_dim} with width={shape.width}",
            expected="an even head_dim",
            hint="choose an even width",
        )
    _divide(shape.num_heads, shape.num_kv_heads, "num_heads", "num_kv_heads")
    # Attention works with any num_heads x head_dim, but transformers' LlamaConfig refuses to load another.
    _divide(shape.width, shape.num_heads, "width", "num_heads")


def _divide(whole: int, part: int, whole_name: str, part_name: str) -> int:
    if whole % part:
        raise JobError(
            f"gpt: {part_name} does not divide {whole_name}",
            found=f"{whole_name}={whole}, {part_name}={part}",
            expected=f"{part_name} one of {', '.join(str(n) for n in range(1, whole + 1) if whole % n == 0)}",
        )
    return whole // part


def _round_up(value: float, multiple: int) -> int:
    return -int(-value // multiple) * multiple
