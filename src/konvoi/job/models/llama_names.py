"""A GPT of ours as a `LlamaForCausalLM` of transformers: the same numbers under other names. Torch-free."""

from __future__ import annotations

from typing import Any

from konvoi.errors import JobError
from konvoi.job.models.gpt import GPT, INIT_STD, NORM_EPS

OUTER = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
INNER = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def llama_name(name: str) -> str:
    """The name that a parameter of ours has in `LlamaForCausalLM`.

    Under tied embeddings both have two names for one matrix, and transformers saves `model.embed_tokens.weight` only.

    Raises: KeyError for a name that no GPT has.

    >>> llama_name("blocks.3.attention.q.weight")
    'model.layers.3.self_attn.q_proj.weight'
    >>> llama_name("head.weight")
    'lm_head.weight'
    """
    module, _, leaf = name.rpartition(".")
    if not module.startswith("blocks."):
        return f"{OUTER[module]}.{leaf}"
    _, index, inner = module.split(".", 2)
    return f"model.layers.{index}.{INNER[inner]}.{leaf}"


def llama_module(name: str) -> str:
    """The same of a module that has a weight; another keeps its name.

    >>> llama_module("blocks.3.attention.q"), llama_module("blocks.3.attention")
    ('model.layers.3.self_attn.q_proj', 'blocks.3.attention')
    """
    try:
        return llama_name(f"{name}.weight").removesuffix(".weight")
    except (KeyError, ValueError):
        return name


def llama_config(gpt: GPT) -> dict[str, Any]:
    """The content of config.json: what `LlamaConfig(**config)` and `AutoModelForCausalLM.from_pretrained` read.

    The special tokens are None, as bytes have none; an export with a tokenizer that has some sets them.

    Raises: JobError where the data has not been fitted.
    """
    if gpt.vocab_size is None or gpt.seq_len is None:
        raise JobError(
            "gpt cannot be exported before it knows its data",
            found=f"vocab_size={gpt.vocab_size}, seq_len={gpt.seq_len}",
            hint="fit(spec) fills them in",
        )
    shape = gpt.shape
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": gpt.vocab_size,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": gpt.seq_len,
        "initializer_range": INIT_STD,
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": gpt.rope_theta},
        "rope_theta": gpt.rope_theta,  # where transformers 4 and most other readers look
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": gpt.tie_embeddings,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
