"""Adapters on a student: with a PEFT configuration only they train, and only they change hands.

A tuner puts its layers into the model in place, so the model inside a `PeftModel` is cut like any other, under the names
that the adapters gave its tensors. The wrapper around it is kept for what it is good at: saving, and naming the adapters'
weights as every PEFT application does.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from flwr_splitkd.errors import ConfigError

if TYPE_CHECKING:
    # At run time only where adapters are used: it takes a second, which a device would spend in every turn.
    from peft import PeftConfig

__all__ = ["add_adapters", "exchanged_state", "inner_model", "load_exchanged_state", "peft_from_json", "peft_to_json"]


def add_adapters(model: nn.Module, config: PeftConfig | None) -> nn.Module:
    """Wrap a model or its skeleton with new adapters; None leaves it as it is.

    Raises
    ------
    ConfigError
        If the model has adapters already, or the configuration does not fit it.
    """
    if config is None:
        return model
    if _is_wrapped(model):
        raise ConfigError(
            f"`peft` is a {type(config).__name__} and `student` builds a {type(model).__name__}; expected one of the two. "
            "Leave `peft` out, or return the model without adapters."
        )
    _refuse_prompts(config)
    from peft import get_peft_model

    try:
        return get_peft_model(model, config)
    except ValueError as error:  # PEFT's word for target modules that are not there
        raise ConfigError(f"`peft` does not fit {type(model).__name__}: {error}") from error


def inner_model(model: nn.Module) -> nn.Module:
    """The model that a `PeftModel` wraps, adapters included; any other model itself.

    Raises
    ------
    ConfigError
        If its adapters are not layers of the model.
    """
    if not _is_wrapped(model):
        return model
    wrapper: Any = model
    _refuse_prompts(wrapper.active_peft_config)
    inner: nn.Module = wrapper.get_base_model()
    return inner


def exchanged_state(model: nn.Module) -> dict[str, Tensor]:
    """What a strategy's arrays hold: the adapters' weights under PEFT's names, or a plain model's state dict."""
    if not _is_wrapped(model):
        return model.state_dict()
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def load_exchanged_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what `exchanged_state` returned; names and shapes must fit."""
    if _is_wrapped(model):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, dict(state))
    else:
        model.load_state_dict(state)


def peft_to_json(config: PeftConfig | None) -> str:
    """A configuration as text for the other side; empty for None.

    Only what differs from the defaults: PEFT versions differ in the settings that they know.
    """
    if config is None:
        return ""
    defaults = type(config)().to_dict()
    changed = {key: value for key, value in config.to_dict().items() if value != defaults[key]}
    # Written by the version that made it, and of no use to another.
    changed.pop("peft_version", None)
    return json.dumps({**changed, "peft_type": str(config.peft_type.value)}, default=_jsonable)  # type: ignore[union-attr]


def peft_from_json(text: str) -> PeftConfig | None:
    """Undo `peft_to_json`.

    Raises
    ------
    ConfigError
        If the installed PEFT does not know such a configuration.
    """
    if not text:
        return None
    from peft import PeftConfig

    try:
        settings = json.loads(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it leaves out what it does not know: refused below
            config: PeftConfig = PeftConfig.from_peft_type(**settings)  # type: ignore[no-untyped-call]
        unknown = sorted(set(settings) - set(config.to_dict()))
        if unknown:
            raise ValueError(f"it does not know {unknown[0]!r}")
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            f"The edge's `peft` is {text}, which this PEFT does not take: {error}. Install the edge's version of peft here."
        ) from error
    return config


def _is_wrapped(model: nn.Module) -> bool:
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def _jsonable(value: Any) -> Any:
    if isinstance(value, set | frozenset | tuple):
        return sorted(value)
    raise ConfigError(f"`peft` has the setting {value!r}; expected numbers, texts, lists and mappings.")


def _refuse_prompts(config: PeftConfig) -> None:
    if getattr(config, "is_prompt_learning", False):
        raise ConfigError(
            f"`peft` is a {type(config).__name__}; expected adapters that are layers of the model, such as LoraConfig: virtual "
            "tokens are put before the first layer, outside the model that is cut."
        )
