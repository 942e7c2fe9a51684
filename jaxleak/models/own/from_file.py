"""A model by its name, as a module, or from a function in a Python file."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn

from jaxleak.errors import InputError, check_choice, check_file
from jaxleak.models import MODELS, build_model
from jaxleak.models.own import module_name

BUILDER = "build_model"  # the function looked for in a Python file


def model_builder(model: Any) -> tuple[str, Callable[..., Any]]:
    """The model's name, and a function from the number of classes and fields to the module.

    Raises:
        InputError: no such model, file or function.
    """
    if not isinstance(model, str | Path):
        return module_name(model), _given_fields(model)
    file, colon, function = str(model).rpartition(":")
    if not file.endswith(".py"):
        file, colon, function = str(model), "", ""
    if not file.endswith(".py"):
        check_choice("model", str(model), MODELS)
        return str(model), lambda classes, /, **fields: build_model(str(model), classes, **fields)
    return Path(file).stem, _function(Path(file), function if colon else BUILDER)


def _given_fields(model: Any) -> Callable[..., Any]:
    def build(classes: int, /, **fields: Any) -> Any:
        if not fields:
            return model
        if not isinstance(model, nn.Module):
            raise InputError(f"`fields` are for a Linen module or a model's name; give {module_name(model)} its own.")
        try:
            return model.clone(**fields)
        except TypeError as error:
            raise InputError(f"`fields` do not fit {module_name(model)}: {error}.") from error

    return build


def own_loss(name: str, model: Any) -> Callable[..., Any]:
    """A loss (outputs, targets) -> number: `FILE.py:FUNCTION`, FILE.py for its function `loss`, or one in the model's.

    Raises:
        InputError: no such file or function.
    """
    file, colon, function = name.rpartition(":")
    if not file.endswith(".py"):
        file, colon, function = name, "", ""
    if file.endswith(".py"):
        return function_in("loss", Path(file), function if colon else "loss")
    source = str(model).rpartition(":")[0] if ".py:" in str(model) else str(model)
    if not source.endswith(".py"):
        raise InputError(
            f"`loss` must be cross-entropy, bce or mse, a sum of these, or FILE.py:FUNCTION; got {name!r}."
        )
    return function_in("loss", Path(source), name)


def function_in(argument: str, file: Path, name: str) -> Callable[..., Any]:
    """The function of this name in a Python file.

    Raises:
        InputError: no such file or function, or the file cannot be run.
    """
    check_file(argument, file, "a name or a Python file")
    spec = importlib.util.spec_from_file_location(f"jaxleak_model_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up annotations
    sys.path.insert(0, str(file.resolve().parent))  # its neighbours can be imported, as where it is run
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise InputError(f"`{argument}` {str(file)!r} cannot be run: {type(error).__name__}: {error}.") from error
    finally:
        sys.path.pop(0)
    found = getattr(module, name, None)
    if not callable(found):
        here = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == spec.name]
        own = [key for key, value in vars(module).items() if isinstance(value, nn.Module)] or here
        held = f", as {file.name}:{own[-1]}" if own else ""
        raise InputError(f"`{argument}` {str(file)!r} has no function {name!r}; name another after a colon{held}.")
    return found


def _function(file: Path, name: str) -> Callable[..., Any]:
    build = function_in("model", file, name)
    if isinstance(build, nn.Module):
        return _given_fields(build)

    def checked(classes: int, /, **fields: Any) -> Any:
        try:
            return build(classes, **fields)
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's function raises
            reason = f"{type(error).__name__}: {error}"
            raise InputError(
                f"`model` {str(file)!r}: {name} fails: {reason}; it is called with the number of classes."
            ) from error

    return checked
