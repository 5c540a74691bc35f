"""Mine hard negatives: ``python mine.py encoder=runs/demo/simcse pairs=pairs.jsonl output=triplets.jsonl``."""

from pathlib import Path

from omegaconf import DictConfig

from l2v import config as configs


def main(composed: DictConfig) -> None:
    """Check the config, encode, search, write triplets, print what became of the candidates."""
    config = configs.plain(composed)

    from l2v.mining.mine import describe, mine
    from l2v.mining.settings import Mining

    del config["debug"]
    subject = configs.take_encoder(config)
    mining = configs.construct(Mining, config, "")
    print(describe(mine(subject, mining)))
    print(f"\nTriplets: {Path(mining.output).expanduser().resolve()}")


def start() -> None:
    """The program, with the arguments of this process."""
    configs.run(main, name="mine")


if __name__ == "__main__":
    start()
