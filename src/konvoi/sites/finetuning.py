"""Behind the last round a site trains on by itself, where the plan says so: nothing of that leaves the house."""

from __future__ import annotations

import json
import traceback
from typing import TYPE_CHECKING

from konvoi.errors import KonvoiError
from konvoi.sites.protocol import ERRORS, TRAINING, Facts, convoy_of
from konvoi.sites.refusing import forbidden

if TYPE_CHECKING:
    from konvoi.sites.part import Part

WEIGHTS, FIGURES = "finetuned.safetensors", "finetuned.json"  # in the run's folder here


def finetune(part: Part, facts: Facts) -> None:
    """Once, and within what the pack and this site's limits allow. Only the weights are asked of the server, and no
    word of what came of it is said there, a failure included, whatever it is.

    Raises: as `fetching.weights`, for then it is to be tried again.
    """
    local, into = convoy_of(part.pack.plan, part.run_.settings).local, part.folder / FIGURES
    if local is None or not local.finetune or into.exists() or part.has_to_end():
        return
    if why := forbidden(facts, part.run_, part.pack, part.signer, part.house, part.here.site):
        part.say(f"not fine-tuned: {'; '.join(why)}")
        return
    try:
        _train_on(part, facts, local.finetune)
    except KonvoiError:
        raise
    except Exception:  # a full disk, a recipe that left nothing
        part.house.log(traceback.format_exc(), part.hash)
        _say_why_not(part, TRAINING)


def _train_on(part: Part, facts: Facts, epochs: float) -> None:
    into = part.folder / FIGURES
    attempt, order = part.attempt(facts, WEIGHTS, FIGURES, evaluate=True, finetune=True)
    part.say(f"trains on for this house alone: {epochs:g} epochs")
    result = part.process.train(order, most_s=60 * part.house.limits.max_minutes_per_round, is_over=part.has_to_end)
    if result is None:
        return
    if result.code:
        _say_why_not(part, result.code)
        return
    (attempt / WEIGHTS).replace(part.folder / WEIGHTS)
    (attempt / FIGURES).replace(into)  # last: where it is, all is
    found = json.loads(into.read_text())
    losses = [one["valid_loss"] for one in (found["before"], found["after"]) if "valid_loss" in one]
    told = "; held-out loss {:.4f} before, {:.4f} after".format(*losses) if len(losses) == 2 else ""
    part.say(f"fine-tuned for this house alone: {part.folder / WEIGHTS}{told}")


def _say_why_not(part: Part, code: int) -> None:
    part.say(f"not fine-tuned: {ERRORS.get(code, ERRORS[TRAINING])}; why stands in {part.folder / 'log.txt'}")
