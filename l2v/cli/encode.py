"""Encode files: ``python encode.py encoder=runs/demo/simcse files='texts/*.jsonl' output=vectors``."""

from dataclasses import fields

from omegaconf import DictConfig

from l2v import config as configs


def main(composed: DictConfig) -> None:
    """Check the config and the files, encode, print what was written."""
    config = configs.plain(composed)

    from l2v.embedding.embed import describe, encode
    from l2v.embedding.job import Encoding
    from l2v.encoders.settings import EncoderSettings

    del config["debug"]
    trainer = configs.build_predictor(config.pop("trainer"))
    of_encoder = {field.name: config.pop(field.name) for field in fields(EncoderSettings) if field.name in config}
    subject = EncoderSettings(**configs.check(EncoderSettings, {"source": config.pop("encoder"), **of_encoder}, ""))
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
