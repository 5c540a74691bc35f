"""Encode files: ``python encode.py encoder=runs/demo/simcse files='texts/*.jsonl' output=vectors``."""

from typing import Literal

from omegaconf import DictConfig

from l2v import config as configs
from l2v.errors import L2VError


def main(composed: DictConfig) -> None:
    """Check the config and the files, encode, print what was written."""
    config = configs.plain(composed)

    from l2v.embedding.cluster import Cluster, encode_on_ray
    from l2v.embedding.embed import describe, encode
    from l2v.embedding.job import Encoding

    del config["debug"]
    trainer = configs.build_predictor(config.pop("trainer"))
    engine = configs.check_value(Literal["local", "ray"], config.pop("engine"), "engine")
    cluster = configs.construct(Cluster, config.pop("ray"), "ray")
    if engine == "local" and cluster != Cluster():
        changed = next(name for name, value in vars(cluster).items() if value != getattr(Cluster(), name))
        raise L2VError(f"ray.{changed}={getattr(cluster, changed)}: is for engine=ray, found engine=local")
    subject = configs.take_encoder(config)
    encoding = configs.construct(Encoding, config, "")
    if engine == "ray":
        manifest = encode_on_ray(subject, encoding, trainer, cluster)
    else:
        manifest = encode(subject, encoding, trainer)
    if configs.process_rank() == 0:
        print(describe(manifest))
        print(f"Vectors: {encoding.folder.resolve()}")


def start() -> None:
    """The program, with the arguments of this process."""
    configs.run(main, name="encode")


if __name__ == "__main__":
    start()
