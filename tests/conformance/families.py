"""Families of transformers at tiny random configurations: models that nobody wrote for us, each of another kind."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from konvoi.job import adapt, models, objectives, optimizers, schedules
from konvoi.job.job import Job
from konvoi.proof import Case
from konvoi.proof.cases import Images

VOCAB, SEQ = 99, 12
TOLERANCE = 1e-4  # in fp32, as they cast to it inside
FLOOR = 1e-2  # with the tolerance: 1e-6. Biases of keys have no gradient but noise.

WIDTH = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
BASE = WIDTH | {"vocab_size": VOCAB, "max_position_embeddings": 64}
GROUPED = BASE | {"num_key_value_heads": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Family:
    what: str  # what is particular to it
    config: dict[str, Any]
    kind: str = "causal"


FAMILIES = {
    "llama": Family("dense, grouped-query attention", GROUPED),
    "qwen2": Family("biases on queries, keys and values; tied embeddings", GROUPED | {"tie_word_embeddings": True}),
    "qwen3": Family("norms on queries and keys", GROUPED | {"head_dim": 8}),
    "gemma2": Family(
        "four norms a block, soft-capped eager attention, sliding windows, tied",
        GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    ),
    "gpt2": Family(
        "learned positions, transposed matrices, fused projections, tied",
        {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "gpt_neox": Family("parallel attention and MLP, fused projections", BASE),
    "opt": Family(
        "learned positions, parts named in another order than they are called",
        {key: BASE[key] for key in BASE if key != "intermediate_size"}
        | {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    ),
    "phi": Family("parallel attention and MLP on one norm, biases", BASE),
    "cohere": Family("parallel attention and MLP, scaled logits, tied", GROUPED),
    "mixtral": Family("mixture of experts", GROUPED | {"num_local_experts": 4}),
    "olmo2": Family("norms behind attention and MLP, and over all heads at once", GROUPED),
    "bloom": Family(
        "positions as biases of attention, fused projections, tied",
        {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 4, "n_head": 4}
        | {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    ),
    "bert": Family("encoder only, post-norm", BASE | NO_DROPOUT, "masked"),
    "modernbert": Family(
        "encoder only, fused projections, local and global attention",
        BASE | {f"{name}_token_id": n for n, name in enumerate(("pad", "cls", "sep", "bos", "eos"))},
        "masked",
    ),
    "distilbert": Family(
        "encoder only, without token types",
        {"vocab_size": VOCAB, "dim": 32, "hidden_dim": 64, "n_layers": 4, "n_heads": 4, "max_position_embeddings": 64}
        | {"dropout": 0.0, "attention_dropout": 0.0},
        "masked",
    ),
    "t5": Family(
        "encoder and decoder, relative positions from the first block",
        {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}
        | {"dropout_rate": 0.0},
        "seq2seq",
    ),
    "bart": Family(
        "encoder and decoder, learned positions, tied",
        {"vocab_size": VOCAB, "d_model": 32, "max_position_embeddings": 64, "dropout": 0.0}
        | {f"{side}_layers": 3 for side in ("encoder", "decoder")}
        | {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
        | {f"{side}_ffn_dim": 64 for side in ("encoder", "decoder")},
        "seq2seq",
    ),
    "vit": Family(
        "vision transformer",
        WIDTH | NO_DROPOUT | {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 4},
        "images",
    ),
}

PLANS = ("tp=2", "pp=2,accumulate=2")
HYBRIDS = ("tp=2,pp=2,accumulate=2", "fsdp=2,tp=2", "tp=2,sequence_parallel", "pp=2,accumulate=4,schedule=interleaved")
FAMILY_ROWS = [(name, plan) for name in FAMILIES for plan in (*PLANS, *(HYBRIDS if name in ("llama", "t5") else ()))]
FAMILY_ROWS += [(f"{name} lora", plan) for name in ("llama", "gpt2", "bert", "t5", "vit") for plan in PLANS]

OBJECTIVES = {
    "causal": objectives.next_token(),
    "masked": objectives.masked_token(),
    "seq2seq": objectives.sequence_to_sequence(),
    "images": objectives.classification(),
}


@dataclass(frozen=True)
class Tokens:
    """Counting by ones, twos or threes; a third of the labels do not count."""

    def __len__(self):
        return 26

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        ids = ((random.integers(0, VOCAB) + np.arange(SEQ + 1) * random.integers(1, 4)) % VOCAB).astype(np.int64)
        return {"input_ids": ids, "labels": np.where(random.random(SEQ + 1) < 0.3, -100, ids)}


def case(name: str) -> Case:
    """A family by its name; with " lora" behind it, of which only adapters are trained."""
    base = name.removesuffix(" lora")
    family = FAMILIES[base]
    model = models.hf({"model_type": base, **family.config}, kind=family.kind)
    job = Job(
        model=model if base == name else adapt.lora(rank=3, alpha=24).on(model),
        data=Images() if family.kind == "images" else Tokens(),
        objective=OBJECTIVES[family.kind],
        optimizer=optimizers.sgd(lr=0.3, momentum=0.9),
        schedule=schedules.constant(),
        global_batch=8,
        clip_grad_norm=0.25,
        seed=3,
        steps=5,
    )
    return Case(name, job)
