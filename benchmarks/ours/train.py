"""Konvoi's side: one `kv.train`, as a user's script has it. What happened is read from the run's own record."""

import _work
import konvoi as kv


def main() -> None:
    args = _work.arguments()
    kv.train(
        _work.job(args.work, steps=args.steps, workers=args.workers),
        kv.Island(dp=args.workers, precision=args.work.precision, compile=args.work.compiled),
        kv.fleet.local(args.workers),
        checkpoint_every=args.checkpoint_every or 0,  # 0: only at the end, which is not timed
    )


if __name__ == "__main__":
    main()
