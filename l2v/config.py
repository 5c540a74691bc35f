"""From a composed Hydra config to checked Python objects, and from any mistake to one line.

The only room inside ``l2v`` that knows Hydra: everything else takes plain, typed keyword arguments.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
import os
import re
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import hydra
from annotated_types import Ge
from hydra.core.hydra_config import HydraConfig
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from l2v.errors import L2VError, Stopped, first_line
from l2v.progress import say

if TYPE_CHECKING:
    from l2v.evaluation.during import During
    from l2v.training import Training


def run(task: Callable[[DictConfig], None], *, conf: Path, name: str) -> None:
    """Run ``task`` with the config that Hydra composes from ``conf/<name>.yaml`` and the command line.

    An error is printed as one line, without a traceback unless ``debug=true``. Exit codes: 0, 1 after an error, 130
    or 143 after Ctrl-C or SIGTERM.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra raises its errors instead of printing them
    debug = any(argument.lower() == "debug=true" for argument in sys.argv)
    failures: list[Exception] = []

    @functools.wraps(task)
    def guarded(composed: DictConfig) -> None:
        try:
            task(composed)
        except Exception as error:
            if debug:
                raise
            failures.append(error)
            if isinstance(error, Stopped):
                raise SystemExit from None
            _tell(error, conf)

    try:
        sys.argv[1:] = with_model_of_init(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(conf.resolve()), config_name=name)(guarded)()
        sys.stdout.flush()
    except KeyboardInterrupt:
        say("interrupted; what was saved before is kept")
        sys.exit(130)
    except SystemExit:
        if not failures:
            raise
        if process_rank() == 0:
            say(str(failures[-1]))
        sys.exit(128 + failures[-1].signal if isinstance(failures[-1], Stopped) else 1)
    except Exception as error:
        if debug:
            raise
        failures.append(error)
        _tell(error, conf)
    if failures:
        sys.exit(1)


def _reader_is_gone() -> bool:
    """Whether nobody reads what is printed any more, as after ``| head``. No more is then tried to print."""
    out = sys.stdout.fileno()
    watch = select.poll()
    watch.register(out, 0)
    gone = any(event & select.POLLERR for _, event in watch.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    return gone


def _tell(error: Exception, conf: Path) -> None:
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        return
    say(f"error: {one_line(error, conf)}", style="red")


def one_line(error: BaseException, conf: Path) -> str:
    """What went wrong, for a user, in one line."""
    for known in _chain(error):
        if isinstance(known, L2VError):
            return str(known)
    text = str(error)
    if found := re.search(r"Could not find '([\w/@.-]+)/([^'/]+)'", text):
        group, option = found[1].split("@")[0], found[2]
        options = sorted(file.stem for file in (conf / group).glob("*.yaml"))
        return f"{group}={option}: no such option{_guess(option, options)}; there are {', '.join(options)}"
    if found := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        key = found[1] or found[2]
        if owners := _options_with(key, conf):
            return f"{key}: not a setting of the chosen options; it is one of {', '.join(owners)}, so choose that too"
        return f"{key}: no such setting{_guess(key, list(_keys(conf)))}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; an override is key=value, with quotes around odd values: key='a,b'"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    first = text.strip().splitlines()[0] if text.strip() else "no message"
    return f"{type(error).__name__}: {first} (debug=true shows where)"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _guess(word: str, options: list[str]) -> str:
    match = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    return f" (did you mean {match[0]}?)" if match else ""


def _keys(conf: Path) -> Iterator[str]:
    """Every setting's dotted name, for guessing what a typo meant."""
    for file in sorted(conf.rglob("*.yaml")):
        group = "" if file.parent == conf else file.parent.relative_to(conf).as_posix().replace("/", ".") + "."
        if group:
            yield group.rstrip(".")
        yield from (
            group + key
            for key in _flat(OmegaConf.to_container(OmegaConf.load(file)))
            if not key.endswith(("defaults", "_target_"))
        )


def _options_with(key: str, conf: Path) -> list[str]:
    """The options of a group that have a setting, as group=option."""
    group, _, name = key.partition(".")
    files = sorted((conf / group).glob("*.yaml"))
    return [f"{group}={f.stem}" for f in files if name in _flat(OmegaConf.to_container(OmegaConf.load(f)))]


def _flat(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _flat(value, f"{prefix}{key}.")


def with_model_of_init(arguments: list[str]) -> list[str]:
    """``init_from=<run>`` without ``model=`` takes the run's model, with the overrides that it was given."""
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    record = Path(given.get("init_from", "")).expanduser() / "run.json"
    if "init_from" not in given or any(re.match(r"\+*model\b", key) for key in given) or not record.is_file():
        return arguments
    from l2v.sources import read_json

    overrides = read_json(record).get("overrides", [])
    return [*arguments, *(o for o in overrides if re.match(r"\+*model\b", o))]


# a composed config


def plain(config: DictConfig, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """The config as plain dictionaries and lists, with interpolations resolved.

    Args:
        config: as Hydra composed it.
        without: dotted names of what is left out, where it is there.

    Raises:
        L2VError: a setting that must be given is missing.
    """
    config = config.copy()
    for key in without:
        group, _, name = key.rpartition(".")
        if isinstance(node := OmegaConf.select(config, group), DictConfig):
            with open_dict(node):
                node.pop(name, None)
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = error.full_key or "a setting"
        if "missing" in type(error).__name__.lower() or "Missing" in str(error):
            raise L2VError(f"{key}: must be given, as {key}=...") from None
        raise L2VError(f"{key}: {first_line(error)}") from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def compose(name: str, overrides: list[str]) -> dict[str, Any]:
    """Another of the configs in ``conf/``, from inside a task."""
    return plain(hydra.compose(config_name=name, overrides=overrides))


def choices() -> dict[str, str]:
    """The option chosen in each group."""
    chosen = HydraConfig.get().runtime.choices
    return {group: option for group, option in chosen.items() if not group.startswith("hydra/")}


def overrides() -> list[str]:
    """What the command line changed."""
    return list(HydraConfig.get().overrides.task)


def merge_overrides(saved: DictConfig, composed: DictConfig, given: list[str]) -> DictConfig:
    """A run's saved config with the overrides that were given with ``resume=``.

    An override of a group (trainer=ddp) replaces the whole group.
    """
    merged = saved.copy()
    for override in given:
        key = override.lstrip("+~").split("=", 1)[0]
        if key not in ("resume", "debug"):
            OmegaConf.update(merged, key, OmegaConf.select(composed, key), merge=False, force_add=True)
    return merged


def process_rank() -> int:
    """This process's number among those of one training, before any of them talks to another."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return max(int(os.environ.get(name, 0)) for name in names)


def build(node: Any, where: str) -> Any:
    """Instantiate ``_target_`` nodes, inner ones first, with every argument checked against the target's signature.

    Args:
        node: plain dictionaries, lists and values.
        where: the dotted name of the node, for errors.

    Raises:
        L2VError: an unknown or missing key, or a value of the wrong type or out of range.
    """
    if isinstance(node, list):
        return [build(item, f"{where}.{number}") for number, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    arguments = {key: build(value, f"{where}.{key}") for key, value in node.items() if key != "_target_"}
    if "_target_" not in node:
        return arguments
    target = _find(node["_target_"], where)
    return target(**check(target, arguments, where))


def check(target: Callable[..., Any], arguments: dict[str, Any], where: str) -> dict[str, Any]:
    """The arguments, converted to the types that the target's signature asks for.

    ``where`` is the dotted name of the node that they are in, empty at the top of the config.

    Raises:
        L2VError: see :func:`build`.
    """
    parameters, takes_more = _parameters(target)
    inside = f"{where}." if where else ""
    for name in arguments:
        if name not in parameters and not takes_more:
            raise L2VError(f"{inside}{name}: no such setting{_guess(name, list(parameters))}")
    for name, (_, default) in parameters.items():
        if name not in arguments and default is inspect.Parameter.empty:
            raise L2VError(f"{inside}{name}: must be given")
    return {
        name: check_value(parameters.get(name, (Any, None))[0], value, f"{inside}{name}")
        for name, value in arguments.items()
    }


def check_value(annotation: Any, value: Any, where: str) -> Any:
    """``value`` converted to the annotated type, where that is one that can be checked.

    A dictionary of dataclasses takes dictionaries of their arguments.

    Raises:
        L2VError: the wrong type, or out of range.
    """
    items = get_args(annotation)
    if get_origin(annotation) is dict and dataclasses.is_dataclass(items[1]) and isinstance(value, dict):
        options: Any = items[1]
        return {key: options(**check(options, one or {}, f"{where}.{key}")) for key, one in value.items()}
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    for config in (ConfigDict(arbitrary_types_allowed=True), None):  # pydantic takes no config beside a dataclass
        try:
            return TypeAdapter(annotation, config=config).validate_python(value)
        except ValidationError as error:
            reasons = dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in error.errors())
            raise L2VError(f"{where}={value}: {'; or '.join(reasons)}") from None
        except (PydanticSchemaGenerationError, PydanticUserError, TypeError):
            continue
    return value


def _parameters(target: Callable[..., Any]) -> tuple[dict[str, tuple[Any, Any]], bool]:
    """Name -> (annotation, default) of what a callable takes, and whether it takes other names too.

    ``**settings`` of a class of ours stand for the arguments of its base class; elsewhere they take any name.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for owner in target.__mro__ if isinstance(target, type) else [target]:
        function = owner.__dict__.get("__init__") if isinstance(owner, type) else owner
        if function is None or not inspect.isfunction(inspect.unwrap(function)):
            continue
        try:
            hints = get_type_hints(inspect.unwrap(function), include_extras=True)
        except NameError:  # an annotation that only a type checker can resolve
            hints = {}
        more = False
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                more = True
            elif name != "self":
                found.setdefault(name, (hints.get(name, Any), parameter.default))
        if not more or not owner.__module__.startswith("l2v."):
            return found, more
    return found, False


def _find(target: str, where: str) -> Callable[..., Any]:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        hint = f"; `pip install {error.name}`" if error.name and not error.name.startswith("l2v") else ""
        raise L2VError(f"{where}._target_={target}: cannot be imported ({error}){hint}") from None
    except AttributeError:
        raise L2VError(f"{where}._target_={target}: {module} has no {name}") from None


_DATA = {"train", "validation", "workers", "folder", "sets", "held_out"}
"""Keys of the group ``data``; the last three are for train and validation to read."""
_SET_BY_L2V = {
    "max_steps": "use stage.max_steps",
    "val_check_interval": "use stage.validate_every",
    "check_val_every_n_epoch": "use stage.validate_every",
    "logger": "choose logger=",
    "callbacks": "there is no override for it",
    "enable_progress_bar": "there is no override for it",
    "enable_model_summary": "there is no override for it",
    "num_sanity_val_steps": "l2v validates before the first step",
    "use_distributed_sampler": "the stages share the data themselves",
    "default_root_dir": "use runs_dir",
}


PASS_TOKENS_ON_CPU = 1024
"""``stage.micro_batch_tokens=auto``: tensors of so many tokens stay in a processor's cache (docs/performance.md). Other
devices are filled by a whole batch, and sharded weights need one pass a step."""
_OF_OTHER_GROUPS = ("text_unit", "adapter_init")
"""What a stage says to its data and its adapter."""


def build_training(config: dict[str, Any]) -> "Training":
    """A checked :class:`~l2v.training.Training` from a resolved ``train`` config. Loads no model and no data."""
    from l2v.data.triplets import check_parts
    from l2v.training import Model, Training, accelerator_of

    stage_settings = {k: v for k, v in config["stage"].items() if k not in _OF_OTHER_GROUPS}
    own = config["model"]["stages"].get(config["stage"]["name"], {})
    for key in own:
        if key not in config["stage"]:
            raise L2VError(
                f"model.stages.{config['stage']['name']}.{key}: no such setting{_guess(key, list(config['stage']))}"
            )
    model = Model(**check(Model, config["model"], "model"))
    lora = build(config["adapter"]["lora"], "adapter.lora")
    if config["adapter"]["init"] not in ("new", "continue", "simcse"):
        raise L2VError(f"adapter.init={config['adapter']['init']}: expected new, continue or simcse")
    trainer = dict(config["trainer"])
    strategy = trainer.get("strategy")
    sharded = isinstance(strategy, dict) and not strategy["_target_"].endswith("DDPStrategy")
    passes = stage_settings.get("micro_batch_tokens")
    if isinstance(passes, str):
        if passes != "auto":
            raise L2VError(f"stage.micro_batch_tokens={passes}: expected a number of tokens, null (one pass) or auto")
        on_cpu = accelerator_of(trainer.get("accelerator", "auto")) == "cpu"
        stage_settings["micro_batch_tokens"] = PASS_TOKENS_ON_CPU if on_cpu and not sharded else None
    stage = build(stage_settings, "stage")
    sources = {
        part: build(config["data"][part], f"data.{part}")
        for part in ("train", "validation", "test")
        if config["data"].get(part) is not None
    }
    stage.check(
        encoder=model.kind == "encoder", adapter=lora is not None, sharded=sharded, sources=list(sources.values())
    )
    if sharded and getattr(stage, "micro_batch_tokens", None):
        raise L2VError("stage.micro_batch_tokens: sharded training needs one forward pass a step; set it to null")
    if sharded and model.quantization:
        raise L2VError("model.quantization: weights in 4 bits cannot be sharded; choose trainer=ddp or gpu")
    if model.quantization and lora is None:
        raise L2VError("model.quantization: weights in 4 bits cannot be trained; choose adapter=lora")
    for key in trainer.keys() & _SET_BY_L2V.keys():
        raise L2VError(f"trainer.{key}: set by l2v; {_SET_BY_L2V[key]}")
    trainer_settings = _build_trainer(trainer)
    for group, known in (("data", _DATA | {*stage.data_keys}), ("adapter", {"lora", "init"})):
        for key in config[group].keys() - known:
            raise L2VError(f"{group}.{key}: no such setting{_guess(key, sorted(known))}")
    check_parts(sources["train"], sources["validation"])
    during = _build_during(config)
    if during is not None and not stage.trains_backbone:
        raise L2VError(f"evaluate_every: stage={config['stage']['name']} leaves its encoder as it is; set it to null")
    return Training(
        stage=stage,
        model=model,
        lora=lora,
        **sources,
        workers=check_value(Annotated[int, Ge(0)], config["data"]["workers"], "data.workers"),
        trainer=trainer_settings,
        loggers=[_later(node, f"logger.{name}") for name, node in config["logger"].items()],
        seed=check_value(Annotated[int, Ge(0)], config["seed"], "seed"),
        config=config,
        during=during,
    )


def _build_during(config: dict[str, Any]) -> "During | None":
    """What is evaluated while training."""
    suite, every = config.get("evaluation"), config.get("evaluate_every")
    if suite is None and every is None:
        return None
    if suite is None:
        raise L2VError(
            f"evaluate_every={every}: say what to evaluate: evaluation=demo, which needs no files, or evaluation=quick "
            "evaluation.folder=<its data>"
        )
    if every is None:
        raise L2VError(f"evaluation={suite['suite']}: say how often: evaluate_every=<optimizer steps>")
    from l2v.evaluation.during import During

    every = check_value(Annotated[int, Ge(1)], every, "evaluate_every")
    return During(every, suite["suite"], build(suite["tasks"], "evaluation.tasks"))


_OF_PREDICTION = {"_target_", "accelerator", "devices", "num_nodes", "strategy", "precision", "plugins"}
_OF_TRAINING = {"accumulate_grad_batches", "gradient_clip_val", "log_every_n_steps"}
"""What every option of the group ``trainer`` says, and only training reads."""


def build_predictor(trainer: dict[str, Any]) -> dict[str, Any]:
    """What encode.py takes of the group ``trainer``, as keyword arguments of ``lightning.Trainer``, checked."""
    kept = {key: value for key, value in trainer.items() if key not in _OF_TRAINING}
    for key in kept.keys() - _OF_PREDICTION:
        known = sorted(_OF_PREDICTION - {"_target_"})
        raise L2VError(f"trainer.{key}: not used here{_guess(key, known)}; there are {', '.join(known)}")
    return _build_trainer(kept)


def _build_trainer(trainer: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``lightning.Trainer``, checked; the strategy is what makes it, once it is needed."""
    trainer = dict(trainer)
    target = _find(trainer.pop("_target_"), "trainer")
    kept: dict[str, Any] = {}
    if trainer["precision"] == "auto":  # which Trainer does not know
        kept["precision"] = trainer.pop("precision")
    if isinstance(trainer.get("strategy"), dict):
        kept["strategy"] = _later(trainer.pop("strategy"), "trainer.strategy")
    return {**check(target, trainer, "trainer"), **kept}


def _later(node: dict[str, Any], where: str) -> Callable[[], Any]:
    """The instance of a ``_target_`` node, checked now and made when called."""
    target = _find(node["_target_"], where)
    arguments = {key: build(value, f"{where}.{key}") for key, value in node.items() if key != "_target_"}
    return functools.partial(target, **check(target, arguments, where))
