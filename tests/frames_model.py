"""A model that writes down through which of our functions its forward is reached. Workers import it."""

import json
import os
import traceback
from pathlib import Path

from torch import nn

import konvoi

OURS = str(Path(konvoi.__file__).parent)


class Watched(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, inputs):
        stack = [f for f in traceback.extract_stack() if f.filename.startswith(OURS) and f.name != "<module>"]
        with open(os.environ["KONVOI_FRAMES"], "a") as file:
            file.write(json.dumps([f"{Path(f.filename).relative_to(OURS)}:{f.name}" for f in stack]) + "\n")
        return self.linear(inputs)
