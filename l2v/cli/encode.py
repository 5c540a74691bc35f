"""Encode files: ``python encode.py encoder=runs/demo/simcse files='texts/*.jsonl' output=vectors``."""

from omegaconf import DictConfig

from l2v import config as configs


def main(composed: DictConfig) -> None:
    """Check the config and the files, encode, print what was written."""
    config = configs.plain(composed)

    from l2v.embedding.embed import describe, encode
    from l2v.embedding.job import Encoding

    del config["debug"]
    trainer = configs.build_predictor(config.pop("trainer"))
    subject = configs.take_encoder(config)
    encoding = Encoding(**configs.check(Encoding, config, ""))
    manifest = encode(subject, encoding, trainer)
    if configs.process_rank() == 0:
        print(describe(manifest))
        print(f"Vectors: {encoding.folder.resolve()}")


def start() -> None:
    """The program, with the arguments of this process."""
    configs.run(main, name="encode")


if __name__ == "__main__":
    start()
