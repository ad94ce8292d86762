"""The page in front of several replicas of the model: python -m deploy --replicas 2 [what app.py takes]."""

import argparse

import ray

import app
from deploy.remote import RemoteModel, start
from page.sessions import Speakers


def speakers(args: argparse.Namespace) -> Speakers:
    start()

    def load(name: str, device: str, seats: int) -> RemoteModel:
        return RemoteModel(name, device, seats, args.replicas)

    return Speakers(args.model, args.device, args.seats, args.replicas, load)


def main() -> None:
    parser = app.arguments(__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, default=2, choices=range(1, 65), metavar="N", help="default: 2")
    try:
        app.run(parser.parse_args(), speakers)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
