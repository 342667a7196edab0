"""Five simulated hospitals; then the same recipe as three real processes, each with a third of the X-rays.

    python examples/hospitals.py [--folder runs] [--rounds 6]        a minute and a half on 2 cores

A server, which runs no code of the study, and three sites that only call out to it. What has left each site can be
looked at when all is over: an outbox, and a page for the data-protection officer.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import konvoi as kv
from konvoi.recipe import load_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "xray_fedavg.py"
IMAGES = RECIPE.parent / "data" / "pneumoniamnist.npz"
SITES = ("st-anne", "st-basil", "st-clare")
PATIENCE_S = 120


class Hosts:
    """The processes of a server and of sites, each in a folder of its own, as if on a computer of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, []
        self.env = os.environ | {"HOME": str(folder.resolve()), "OMP_NUM_THREADS": "1"}

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running:
            process.send_signal(signal.SIGINT)
        for process in self.running:
            process.wait()

    def konvoi(self, where: str, *words: str) -> str:
        """A command to its end; what it prints."""
        done = subprocess.run(
            self._command(words), cwd=self.folder / where, env=self.env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"konvoi {' '.join(words)}: {done.stderr}")
        return done.stdout.strip()

    def start(self, where: str, *words: str) -> None:
        """A command that goes on; what it says goes to a log."""
        with (self.folder / where / "log.txt").open("w") as log:
            self.running.append(
                subprocess.Popen(self._command(words), cwd=self.folder / where, env=self.env, stdout=log, stderr=log)
            )

    def wait(self, where: str, text: str) -> None:
        """Until its log says so."""
        end = time.monotonic() + PATIENCE_S
        while text not in (log := (self.folder / where / "log.txt").read_text()):
            if time.monotonic() > end:
                raise SystemExit(f"{where} does not say {text!r}: {log}")
            time.sleep(0.1)

    @staticmethod
    def _command(words: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "konvoi", *words]


def simulate(folder: Path, rounds: int) -> dict[str, float]:
    """Five hospitals, unlike in size and in how many of their patients are ill."""
    hospitals = kv.fleet.simulated(kv.data.dirichlet(clients=5, alpha=1.0))
    job = load_recipe(RECIPE).job()
    return dict(
        kv.train(job, kv.fedavg(rounds=rounds, epochs=2), hospitals, folder=folder, name=_free(folder)).evaluate()
    )


def _free(folder: Path) -> str:
    number = sum(path.name.startswith("hospitals-simulated") for path in folder.glob("*")) + 1
    return f"hospitals-simulated-{number}"


def divide(folder: Path) -> None:
    """A third of the training images for each site, and a third of those to evaluate on."""
    found = dict(np.load(IMAGES))
    order = np.random.default_rng(0).permutation(len(found["train_labels"]))
    for number, site in enumerate(SITES):
        (folder / site).mkdir(parents=True)
        rows = {"train": order[number :: len(SITES)], "val": slice(number, None, len(SITES)), "test": slice(None)}
        np.savez(
            folder / site / "xrays.npz",
            **{
                f"{split}_{kind}": found[f"{split}_{kind}"][at]
                for split, at in rows.items()
                for kind in ("images", "labels")
            },
        )


def deploy(folder: Path, rounds: int) -> list[float]:
    """A server and three sites; returns the held-out loss of each round, over what sites keep for evaluation."""
    (folder / "server").mkdir(parents=True)
    divide(folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with Hosts(folder) as hosts:
        hosts.start("server", "federation", "start", "--name", "hospitals", "--listen", address, "--at", address)
        hosts.wait("server", "listens at")
        print(f"server: listens at {address}")
        purpose = ("--purpose", "to tell pneumonia on chest X-rays", "--tell", "loss,valid")
        pack = hosts.konvoi(
            "server", "federation", "pack", str(RECIPE), "--plan", f"|fedavg,rounds={rounds},epochs=2", *purpose
        )
        run = hosts.konvoi("server", "federation", "submit", pack, "--first", str(len(SITES)))
        for site in SITES:
            hosts.konvoi("server", "federation", "invite", site, "--out", f"../{site}/{site}.invite")
            hosts.start(site, "join", f"{site}.invite", "--data", "xrays.npz")
        for site in SITES:
            hosts.wait(site, "waits for a person here")
        review = hosts.konvoi(SITES[0], "federation", "review").splitlines()
        print("\n".join(f"{SITES[0]}: {line}" for line in review[: review.index("")]))
        for site in SITES:
            hosts.konvoi(site, "federation", "approve")
        print(f"all have approved it; {run} begins")
        hosts.wait("server", f"over after {rounds} rounds")
        print(hosts.konvoi("server", "federation", "runs"))
        print(f"\nwhat has left {SITES[0]}:\n{hosts.konvoi(SITES[0], 'federation', 'outbox')}")
        page = folder / SITES[0] / hosts.konvoi(SITES[0], "federation", "dossier")
        print(f"\nfor the data-protection officer: {page}")
        pulled = folder / "server" / hosts.konvoi("server", "federation", "pull", run, "--best")
        print(f"the weights: {pulled / 'model.safetensors'}")
        return [one["valid_loss"] for one in json.loads((pulled / "history.json").read_text())["rounds"]]


def main(argv: list[str] | None = None) -> tuple[dict[str, float], list[float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where all of it is kept")
    parser.add_argument("--rounds", type=int, default=6)
    args = parser.parse_args(argv)
    simulated = simulate(args.folder, args.rounds)
    print(f"simulated: {', '.join(f'{name} {value:.3f}' for name, value in simulated.items())}\n")
    number = sum(path.name.startswith("hospitals-real") for path in args.folder.glob("*")) + 1
    losses = deploy(args.folder / f"hospitals-real-{number}", args.rounds)
    print(f"held-out loss of the weights that each round began with: {', '.join(f'{loss:.3f}' for loss in losses)}")
    return simulated, losses


if __name__ == "__main__":
    main()
