"""Models of transformers, from a configuration or from a folder: the one file that knows transformers (5.x)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from konvoi.errors import JobError, did_you_mean
from konvoi.values import DataSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

KINDS = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "images": "AutoModelForImageClassification",
}
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class HF:
    """A model of transformers, unchanged. `source` is a folder with `config.json`, or a configuration: its fields with
    `model_type` among them, or transformers' own object.

    `kind` is what is put on the base model: "causal", "masked", "seq2seq" or "images". `weights`: read those of the
    folder, module by module, so that no worker holds all of a model that is split; None: where it has some.
    A vocabulary or a number of classes that the configuration leaves open comes from the data.

    >>> hf({"model_type": "llama", "hidden_size": 64}).fit(DataSpec(vocab_size=257)).config()["vocab_size"]
    257
    """

    source: Any
    _: KW_ONLY
    kind: str = "causal"
    weights: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise JobError("hf: unknown kind of model", found=repr(self.kind), hint=did_you_mean(self.kind, KINDS))
        if self.weights and not self._has_weights():
            raise JobError("hf: no weights", found=repr(self.source)[:200], expected=f"a folder with {WEIGHTS[0]}")

    def config(self) -> dict[str, Any]:
        """The configuration's fields. Raises: JobError where there are none."""
        if isinstance(self.source, Mapping):
            found = dict(self.source)
        elif hasattr(self.source, "to_dict"):
            found = self.source.to_dict()
        else:
            path = Path(self.source) / "config.json"
            if not path.is_file():
                raise JobError("hf: no configuration", found=str(path), expected="a folder that save_pretrained wrote")
            found = json.loads(path.read_text())
        if "model_type" not in found:
            raise JobError("hf: the configuration says no model_type", found=", ".join(sorted(found))[:200])
        return found

    def full_config(self) -> dict[str, Any]:
        """What transformers writes as config.json: every field, and the class that loads it."""
        import torch

        with torch.device("meta"):
            module: Any = self._build()
        found: dict[str, Any] = module.config.to_dict()
        return found | {"architectures": [type(module).__name__], "use_cache": True}

    def fit(self, spec: DataSpec) -> HF:
        """Raises: JobError where the data has more tokens than the model's vocabulary."""
        config = self.config()
        known = config.get("vocab_size")
        if spec.vocab_size and known and known < spec.vocab_size:
            raise JobError(
                "hf: the vocabulary is smaller than the data's",
                found=f"vocab_size={known}",
                expected=f"at least {spec.vocab_size}",
                hint="the model's own tokenizer for the data: kv.data.text(..., tokenizer=...)",
            )
        if self._has_weights():
            return self
        filled = {} if known or not spec.vocab_size else {"vocab_size": spec.vocab_size}
        if self.kind == "images" and spec.num_classes and "num_labels" not in config and "id2label" not in config:
            filled["num_labels"] = spec.num_classes
        return replace(self, source=config | filled) if filled else self

    def derived(self) -> tuple[str, ...]:
        weights = f"weights of {self.source}" if self._reads_weights() else "new weights"
        return (f"model = {self.config()['model_type']} of transformers ({self.kind}), {weights}",)

    def __call__(self) -> nn.Module:
        """The module with its weights; on `meta`, where torch is told so. Raises: JobError."""
        import torch

        if self._reads_weights():
            reader = _Weights(Path(self.source))
            module = self._build_without_parameters()
            if missing := reader.missing(module):
                raise JobError(
                    "hf: the folder's weights have other names than the model's parameters",
                    found=f"no {missing[0]}, nor {len(missing) - 1} others",
                    hint="load it with transformers and save_pretrained it once more",
                )
            if torch.get_default_device().type == "meta":
                module.init_module = reader.fill  # type: ignore[assignment]
            else:
                reader.fill_all(module)
            return module
        return self._build()

    def _build(self) -> nn.Module:
        import transformers

        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        fields = self.config()
        kind = fields.pop("model_type")
        config = transformers.AutoConfig.for_model(kind, **fields)
        config.use_cache = False
        module: nn.Module = getattr(transformers, KINDS[self.kind]).from_config(config)
        return module

    def _build_without_parameters(self) -> nn.Module:
        """The module with its buffers, which no file holds, and its parameters on `meta`."""
        import torch
        from torch import nn

        original = nn.Module.register_parameter

        def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
            original(module, name, parameter)
            if parameter is not None and not parameter.is_meta:  # one that is stays what others are tied to
                empty = torch.empty_like(parameter, device="meta")
                module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)

        nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
        try:
            with torch.device("cpu"):
                return self._build()
        finally:
            nn.Module.register_parameter = original  # type: ignore[method-assign]

    def _reads_weights(self) -> bool:
        return self._has_weights() if self.weights is None else self.weights

    def _has_weights(self) -> bool:
        return isinstance(self.source, (str, Path)) and any((Path(self.source) / name).exists() for name in WEIGHTS)


class _Weights:
    """The tensors of a folder by name, read one by one."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        index = folder / WEIGHTS[1]
        if index.exists():
            named = json.loads(index.read_text())["weight_map"]
            self.files = {name: folder / file for name, file in named.items()}
        else:
            with safe_open(folder / WEIGHTS[0], "pt") as file:
                self.files = dict.fromkeys(file.keys(), folder / WEIGHTS[0])

    def missing(self, module: nn.Module) -> list[str]:
        return [name for name, _ in module.named_parameters() if name not in self.files]

    def fill(self, name: str, module: nn.Module, generator: torch.Generator | None = None) -> None:
        """What `module`, called `name`, owns itself. Of a tied parameter only one name is in the file."""
        import torch
        from safetensors import safe_open

        for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            full = f"{name}.{leaf}" if name else leaf
            if full in self.files:
                with safe_open(self.files[full], "pt") as file, torch.no_grad():
                    tensor.copy_(file.get_tensor(full))

    def fill_all(self, module: nn.Module) -> None:
        import torch
        from torch import nn

        tied: dict[int, nn.Parameter] = {}
        for name, part in module.named_modules():
            for leaf, parameter in list(part.named_parameters(recurse=False)):
                if id(parameter) not in tied:
                    tied[id(parameter)] = nn.Parameter(torch.empty(parameter.shape), parameter.requires_grad)
                part.register_parameter(leaf, tied[id(parameter)])
            self.fill(name, part)


hf = HF
