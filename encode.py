"""Encode files: ``python encode.py encoder=runs/demo/simcse files='texts/*.jsonl' output=vectors``."""

from dataclasses import fields
from pathlib import Path

from omegaconf import DictConfig

from l2v import config as configs


def main(composed: DictConfig) -> None:
    """Check the config and the files, encode, print what was written."""
    config = configs.plain(composed)

    from l2v.encoding.encode import Encoding, describe, encode
    from l2v.evaluation.suite import Subject

    del config["debug"]
    trainer = configs.build_predictor(config.pop("trainer"))
    of_encoder = {field.name: config.pop(field.name) for field in fields(Subject) if field.name in config}
    subject = Subject(**configs.check(Subject, {"source": config.pop("encoder"), **of_encoder}, ""))
    encoding = Encoding(**configs.check(Encoding, config, ""))
    manifest = encode(subject, encoding, trainer)
    if configs.process_rank() == 0:
        print(describe(manifest))
        print(f"Vectors: {encoding.folder.resolve()}")


if __name__ == "__main__":
    configs.run(main, conf=Path(__file__).parent / "conf", name="encode")
