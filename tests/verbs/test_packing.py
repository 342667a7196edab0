"""What a pack states of what it needs, and what it is called."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from konvoi.recipe import needed_by
from konvoi.security.pack import NAME
from konvoi.verbs import packing

SOURCES = {
    "study.py": b"import os.path\nimport numpy as np\nimport helper\nfrom parts import one\nimport konvoi as kv\n",
    "helper.py": b"def read(path):\n    import sklearn.linear_model\n    from PIL import Image\n",
    "parts/one.py": b"from . import two\nimport yaml\ntry:\n import no_such_package\nexcept ImportError: 0\n",
    "notes.txt": b"import scipy: no source of Python",
}


def test_a_pack_states_the_version_of_all_that_its_sources_import_wherever_they_do():
    found = needed_by(SOURCES)
    named = {name.lower() for name in found}
    assert named == {"konvoi", "torch", "numpy", "scikit-learn", "pillow", "pyyaml"}
    assert all(version == importlib.metadata.version(name) for name, version in found.items())


def test_of_packages_that_many_distributions_share_none_is_guessed(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"google": ["protobuf", "grpcio"]})
    assert {*needed_by({"a.py": b"import google.cloud\n"})} == {"konvoi", "torch", "numpy"}


@pytest.mark.parametrize("stem", ["study", "X rays_2", "fade", "123", "肺炎", "a" * 90, "-.-", "abc.def", "12.5"])
def test_whatever_a_recipe_is_called_its_pack_has_a_name(stem):
    assert NAME.fullmatch(packing._name_of(Path(f"{stem}.py")))
