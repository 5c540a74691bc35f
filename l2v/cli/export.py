"""Write a run's encoder for others: ``l2v export run=runs/demo/simcse``."""

from pathlib import Path
from typing import get_args

from omegaconf import DictConfig

from l2v import config as configs
from l2v.errors import L2VError
from l2v.evaluation.mteb.submission import Submission, check_submission, write_submission
from l2v.export.card import Form
from l2v.export.export import Export, Merge, export
from l2v.export.hub import check_hub, push_folder
from l2v.models.settings import DType
from l2v.progress import say
from l2v.runs.hashes import settings_hash
from l2v.runs.run import Run


def main(composed: DictConfig) -> None:
    """Check the config, write, push."""
    config = configs.plain(composed)
    run = Run.open(config["run"], "run")
    dtype, form, prompts = config["dtype"], config["form"], config["prompts"] or {}
    for name, value, known in (("dtype", dtype, get_args(DType)), ("form", form, get_args(Form))):
        if value not in known:
            raise L2VError(f"{name}={value}: expected one of {', '.join(known)}")
    encoder = configs.take_encoder(config)
    wanted = Export(
        form=form,
        dtype=dtype,
        merge=configs.construct(Merge, config["merge"], "merge"),
        onnx=configs.check_value(bool, config["onnx"], "onnx"),
        prompts={name: configs.check_value(str, text, f"prompts.{name}") for name, text in prompts.items()},
        encoder=encoder,
    )
    submission = configs.construct(Submission, config["mteb"], "mteb")
    private = configs.check_value(bool, config["private"], "private")
    folder = Path(config["output"]).expanduser() if config["output"] else _folder(run, wanted)
    if folder.exists() and not (folder / "l2v.json").exists():
        raise L2VError(f"output={folder}: the folder exists and holds no encoder; name another one")
    if (folder.parent / "run.json").exists() and folder.name == "encoder":
        raise L2VError(f"output={folder}: the run in {folder.parent} ended with it; name another folder")
    start = wanted.check(run)
    if submission.name is not None:
        if encoder.differences() or wanted.merge != Merge():
            raise L2VError("mteb.name: the scores are those of the run as it is; leave out merge and its settings")
        check_submission(run, submission)
    if config["push"]:
        check_hub(config["push"], wanted, start)
    written = export(run, folder, wanted, name=config["push"] or run.folder.name)
    if submission.name is not None:
        write_submission(run, written, start.head or start.base, folder / "mteb", submission)
    say(f"wrote {folder}")
    if config["push"]:
        say(f"pushed {push_folder(folder, config['push'], private=private)}")


def _folder(run: Run, wanted: Export) -> Path:
    """In the run: exported-<form>-<merge>-<settings>..., another one for each way to export it."""
    merge = wanted.merge
    parts = ["exported"]
    parts += [wanted.form] if wanted.form != "merged" else []
    if merge.runs:
        parts.append(f"{merge.method}-of-{1 + len(merge.runs)}-{settings_hash([merge.runs, merge.weights], 6)}")
    parts += [f"base{merge.base_ratio:g}"] if merge.base_ratio else []
    parts += wanted.encoder.labels() if wanted.encoder is not None else []
    parts += [f"prompts-{settings_hash(wanted.prompts, 6)}"] if wanted.prompts else []
    parts += ["onnx"] if wanted.onnx else []
    return run.folder / "-".join(parts)


def start() -> None:
    """The program, with the arguments of this process."""
    configs.run(main, name="export")


if __name__ == "__main__":
    start()
