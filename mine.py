"""Mine hard negatives: ``python mine.py encoder=runs/demo/simcse pairs=pairs.jsonl output=triplets.jsonl``."""

from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig

from l2v import config as configs


def main(composed: DictConfig) -> None:
    """Check the config, encode, search, write triplets, print what became of the candidates."""
    config = configs.plain(composed)

    from l2v.evaluation.suite import Subject
    from l2v.mining.mine import Mining, describe, mine

    del config["debug"]
    of_encoder = {field.name: config.pop(field.name) for field in fields(Subject) if field.name in config}
    subject = Subject(**configs.check(Subject, {"source": config.pop("encoder"), **of_encoder}, ""))
    mining = Mining(**configs.check(Mining, config, ""))
    print(describe(mine(subject, mining)))
    print(f"\nTriplets: {Path(mining.output).expanduser().resolve()}")


if __name__ == "__main__":
    configs.run(main, conf=Path(__file__).parent / "conf", name="mine")
