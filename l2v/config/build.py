"""From ``_target_`` nodes to objects, every argument checked against the target's signature."""

import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from l2v.config.messages import guess
from l2v.errors import L2VError
from l2v.extras import install_hint, require

_Made = TypeVar("_Made")


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
    target = find_target(node["_target_"], where)
    return construct(target, arguments, where)


def construct(target: Callable[..., _Made], arguments: dict[str, Any], where: str) -> _Made:
    """What a target makes of arguments that are checked against its signature.

    ``where`` is the dotted name of the node that they are in, empty at the top of the config.

    Raises:
        L2VError: see :func:`build`; or as the target does: what it calls by the name of an argument is then called as
            the command line has it.
    """
    return _made(target, check(target, arguments, where), where)


def check(target: Callable[..., Any], arguments: dict[str, Any], where: str) -> dict[str, Any]:
    """The arguments, converted to the types that the target's signature asks for.

    ``where`` is the dotted name of the node that they are in, empty at the top of the config.

    Raises:
        L2VError: see :func:`build`.
    """
    parameters, takes_more = parameters_of(target)
    inside = f"{where}." if where else ""
    for name in arguments:
        if name not in parameters and not takes_more:
            raise L2VError(f"{inside}{name}: no such setting{guess(name, list(parameters))}")
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
        return {key: construct(options, one or {}, f"{where}.{key}") for key, one in value.items()}
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    for config in (ConfigDict(arbitrary_types_allowed=True), None):  # pydantic takes no config beside a dataclass
        try:
            found = TypeAdapter(annotation, config=config).validate_python(value)
            if isinstance(value, bool) and type(found) in (int, float):  # to pydantic true is 1
                raise L2VError(f"{where}={str(value).lower()}: expected a number")
            return found
        except ValidationError as error:
            reasons = dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in error.errors())
            swept = "; several values are a sweep: add -m" if isinstance(value, str) and "," in value else ""
            raise L2VError(f"{where}={value}: {'; or '.join(reasons)}{swept}") from None
        except (PydanticSchemaGenerationError, PydanticUserError, TypeError):
            continue
    return value


def parameters_of(target: Callable[..., Any]) -> tuple[dict[str, tuple[Any, Any]], bool]:
    """Name -> (annotation, default) of what a callable takes, and whether it takes other names too.

    ``**settings`` of a class that inherits from one of ours, or is one, stand for the arguments of its base class;
    elsewhere they take any name.
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
        if not more or not any(base.__module__.startswith("l2v.") for base in getattr(owner, "__mro__", [owner])):
            return found, more
    return found, False


def find_target(target: str, where: str) -> Callable[..., Any]:
    """What a name leads to.

    Raises:
        L2VError: it cannot be imported.
    """
    module, _, name = target.rpartition(".")
    if not module:
        raise L2VError(f"{where}._target_={target}: expected module.Name")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        hint = install_hint(error.name) if error.name and not module.startswith(error.name) else ""
        raise L2VError(f"{where}._target_={target}: cannot be imported ({error}){hint}") from None
    except AttributeError:
        raise L2VError(f"{where}._target_={target}: {module} has no {name}") from None


def build_later(node: dict[str, Any], where: str) -> Callable[[], Any]:
    """The instance of a ``_target_`` node, checked now and made when called."""
    target = find_target(node["_target_"], where)
    arguments = {key: build(value, f"{where}.{key}") for key, value in node.items() if key != "_target_"}
    return functools.partial(_make, target, check(target, arguments, where), where)


_NEEDS = {"TensorBoardLogger": "tensorboard", "ZeRO": "deepspeed"}
"""Classes that import another package when they are made; Lightning's say it in lines of their own."""


def _make(target: Callable[..., Any], arguments: dict[str, Any], where: str) -> Any:
    if needed := _NEEDS.get(getattr(target, "__name__", "")):
        require(f"{where}._target_={target.__module__}.{target.__name__}", needed)
    return _made(target, arguments, where)


def _made(target: Callable[..., _Made], checked: dict[str, Any], where: str) -> _Made:
    try:
        return target(**checked)
    except L2VError as error:
        named = re.match(r"(\w+)(?:=|:| must )", str(error))
        if not where or named is None or named[1] not in checked:
            raise
        raise L2VError(f"{where}.{error}") from None
