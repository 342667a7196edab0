"""Models of transformers, from a configuration or from a folder: the one file that knows transformers (5.x)."""

from __future__ import annotations

import contextlib
import fnmatch
import json
from collections.abc import Iterable, Mapping
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
PEFT_KINDS = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class HF:
    """A model of transformers, unchanged. `source` is a folder with `config.json`, or a configuration: its fields with
    `model_type` among them, or transformers' own object.

    `kind` is what is put on the base model: "causal", "masked", "seq2seq" or "images". `weights`: read those of the
    folder, module by module, so that no worker holds all of a model that is split; None: where it has some. `new`:
    patterns (fnmatch) of parameters that are drawn instead, such as those of another head ("classifier.*"), whether the
    folder has them or not. A vocabulary or a number of classes that the configuration leaves open comes from the data.

    >>> hf({"model_type": "llama", "hidden_size": 64}).fit(DataSpec(vocab_size=257)).config()["vocab_size"]
    257
    """

    source: Any
    _: KW_ONLY
    kind: str = "causal"
    weights: bool | None = None
    new: tuple[str, ...] = ()
    num_labels: int | None = None  # instead of the configuration's

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise JobError("hf: unknown kind of model", found=repr(self.kind), hint=did_you_mean(self.kind, KINDS))
        if self.weights and not self._has_weights():
            raise JobError("hf: no weights", found=repr(self.source)[:200], expected=f"a folder with {WEIGHTS[0]}")
        if isinstance(self.new, str):
            raise JobError("hf: new is several patterns", found=repr(self.new), hint=f"new=({self.new!r},)")

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
        if self.num_labels is None:
            return found
        names = {"id2label", "label2id"}
        return {name: value for name, value in found.items() if name not in names} | {"num_labels": self.num_labels}

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
        is_open = bool(self.new) if self._has_weights() else not {"num_labels", "id2label"} & config.keys()
        if self.kind == "images" and spec.num_classes and is_open and self.num_labels is None:
            return replace(self, num_labels=spec.num_classes).fit(spec)
        if known or not spec.vocab_size or self._has_weights():
            return self
        return replace(self, source=config | {"vocab_size": spec.vocab_size})

    def derived(self) -> tuple[str, ...]:
        weights = f"weights of {self.source}" if self._reads_weights() else "new weights"
        return (f"model = {self.config()['model_type']} of transformers ({self.kind}), {weights}",)

    def __call__(self) -> nn.Module:
        """The module with its weights; on `meta`, where torch is told so. Raises: JobError."""
        import torch

        if self._reads_weights():
            module = self._build_without_parameters()
            reader = _Weights(Path(self.source), module, self.new)
            if missing := reader.missing():
                raise JobError(
                    "hf: the folder's weights have other names than the model's parameters",
                    found=f"no {missing[0]}, nor {len(missing) - 1} others",
                    hint=f"new=({missing[0].partition('.')[0] + '.*'!r},) draws what is not there; or load it with "
                    "transformers and save_pretrained(..., save_original_format=False)",
                )
            if torch.get_default_device().type == "meta":
                module.init_module = reader.fill  # type: ignore[assignment]
            else:
                reader.fill_all()
            return module
        return self._build()

    def is_given(self, name: str) -> bool:
        """Whether a parameter is read from the folder, each time that the model is built."""
        return self._reads_weights() and not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.new)

    def peft_kind(self) -> str | None:
        """PEFT's name for the kind of task, where it has one."""
        return PEFT_KINDS.get(self.kind)

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
    """The tensors of a folder by name, read one by one into a model of transformers; what is new is drawn."""

    def __init__(self, folder: Path, root: Any, new: tuple[str, ...]) -> None:
        from safetensors import safe_open

        self.root, self.new = root, new
        index = folder / WEIGHTS[1]
        if index.exists():
            stored = {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
        else:
            with safe_open(folder / WEIGHTS[0], "pt") as file:
                stored = dict.fromkeys(file.keys(), folder / WEIGHTS[0])
        names = _names_in_model(root, stored)
        self.places = {names[name]: (path, name) for name, path in stored.items()}
        for pattern in new:
            if not fnmatch.filter([name for name, _ in root.named_parameters()], pattern):
                example = next(iter(root.state_dict()))
                raise JobError("hf: new names no parameter", found=repr(pattern), expected=f"e.g. {example}")

    def is_new(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.new)

    def missing(self) -> list[str]:
        names = [name for name, _ in self.root.named_parameters()]
        return [name for name in names if name not in self.places and not self.is_new(name)]

    def fill(self, name: str, module: nn.Module, generator: torch.Generator | None = None) -> None:
        """What `module`, called `name`, owns itself. Of a tied parameter only one name is in the file."""
        import torch
        from safetensors import safe_open

        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        full = {leaf: f"{name}.{leaf}" if name else leaf for leaf, _ in own}
        if any(self.is_new(one) for one in full.values()):
            self._draw(name, module, generator)
        for leaf, tensor in own:
            if full[leaf] in self.places and not self.is_new(full[leaf]):
                path, stored = self.places[full[leaf]]
                with safe_open(path, "pt") as file, torch.no_grad():
                    tensor.copy_(file.get_tensor(stored))

    def _draw(self, name: str, module: nn.Module, generator: torch.Generator | None) -> None:
        """As the innermost model of transformers around a module draws it."""
        from konvoi import devices

        path = name.split(".") if name else []
        above = [self.root.get_submodule(".".join(path[:length])) for length in range(len(path) + 1)]
        own = {id(tensor) for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))}
        others = [one for one in (*self.root.parameters(), *self.root.buffers()) if id(one) not in own]
        for tensor in others:
            tensor._is_hf_initialized = True  # transformers' mark for what its rules must leave as it is
        with devices.seeded(generator.initial_seed()) if generator else contextlib.nullcontext():
            for length in range(len(above), 0, -1):  # some rules are those of a module around it
                owner = next(model for model in reversed(above[:length]) if hasattr(model, "_init_weights"))
                owner._init_weights(above[length - 1])
        for tensor in others:
            del tensor._is_hf_initialized

    def fill_all(self) -> None:
        import torch
        from torch import nn

        tied: dict[int, nn.Parameter] = {}
        for name, part in self.root.named_modules():
            for leaf, parameter in list(part.named_parameters(recurse=False)):
                if id(parameter) not in tied:
                    tied[id(parameter)] = nn.Parameter(torch.empty(parameter.shape), parameter.requires_grad)
                part.register_parameter(leaf, tied[id(parameter)])
            self.fill(name, part)


def _names_in_model(root: Any, stored: Iterable[str]) -> dict[str, str]:
    """The model's own name for each name in a folder: older ones are kept on disk, and a base model's lack its place in
    the whole. By the table that transformers loads by, which is not documented."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [one for one in get_model_conversion_mapping(root) if isinstance(one, WeightRenaming)]
    known = {**dict(root.named_parameters(remove_duplicate=False)), **dict(root.named_buffers())}
    return {name: rename_source_key(name, renamings, [], root.base_model_prefix, known)[0] for name in stored}


hf = HF
