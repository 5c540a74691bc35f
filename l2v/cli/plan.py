"""What a stage will take: ``l2v plan model=llama3-8b stage=supervised trainer=fsdp trainer.devices=8``."""

from pathlib import Path

from omegaconf import DictConfig

from l2v import config as configs
from l2v.progress import say
from l2v.runs.files import check_writable, write_json


def main(composed: DictConfig) -> None:
    """Check the config, run two steps on shapes, print the table.

    Raises:
        L2VError: it does not fit.
    """
    config = configs.plain(composed, without=("data", "logger"))
    setup, room = configs.build_plan(config)
    file = Path(config["output"]).expanduser() if config["output"] is not None else None
    if file is not None:
        check_writable(file)
    from l2v.planning.plan import plan, refuse
    from l2v.planning.table import print_plan

    search = configs.check_value(bool, config["search"], "search")
    made = plan(setup, room, search=search)
    print_plan(setup, made)
    if file is not None:
        write_json(file, made.record())
        say(f"wrote {file}")
    if not made.fits:
        raise refuse(setup, made, search=search)


def start() -> None:
    """The program, with the arguments of this process."""
    configs.run(main, name="plan")


if __name__ == "__main__":
    start()
