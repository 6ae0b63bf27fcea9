"""Weights of a checkpoint: a wrapper's names, what is missing, what is no finite number."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from bertchain.models.folders import check_model_folder

NO_CODE = {"trust_remote_code": False}  # for `from_pretrained`: left out, the user would be asked

# What torch.compile, DataParallel, FSDP and checkpointing put anywhere into names.
WRAPPERS = r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\."


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' load report: the caller logs in one line what is missing.

    Raises:
        ValueError: for weights that cannot be read, or have other shapes than the config says.
    """
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"its weights cannot be read, is the file cut off? ({error})") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError("its weights have other shapes than its config.json says") from error
    finally:
        transformers_logging.set_verbosity(before)


def load_pretrained(
    auto: Any, path: str | os.PathLike, **kwargs: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load a model in float32, also from weights whose names have the prefix of a wrapper.

    Args:
        auto: an `Auto*` class or a class of models.
        kwargs: for `from_pretrained`.

    Returns:
        the model and the names of the weights that the checkpoint lacked (they are new).

    Raises:
        ValueError: as `load_with_info`.
    """
    model, info = load_with_info(auto, path, **kwargs)
    return model, sorted(info["missing_keys"])


def load_with_info(
    auto: Any, path: str | os.PathLike, **kwargs: Any
) -> tuple[PreTrainedModel, dict[str, Collection[str]]]:
    """Load as `load_pretrained`; in place of the missing names return all loading info.

    Raises:
        ValueError: for weights that cannot be read, have other shapes than the config says, are no
            finite numbers, or hold less than half of the encoder.
    """
    check_model_folder(path)
    options = {"dtype": torch.float32, "output_loading_info": True}
    with quiet_loading():
        model, info = auto.from_pretrained(
            path, use_safetensors=True, **options, **NO_CODE | kwargs
        )
        check_fractions(model, path, **kwargs)
        missing = info["missing_keys"]
        if lacks_encoder(model, missing):
            weights = read_weights(path, **kwargs)
            model, info = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=unwrap_names(weights, model),
                **NO_CODE,
                **options,
            )
            missing = info["missing_keys"]
            if lacks_encoder(model, missing):
                other = min(info["unexpected_keys"], default="none")
                raise ValueError(
                    f"holds less than half of the weights of {type(model).__name__}: its names, "
                    f"such as {other}, are not those of this architecture"
                )
    initialise_missing(model, missing)
    check_finite(model)
    return model, info


def lacks_encoder(model: PreTrainedModel, missing: Collection[str]) -> bool:
    """Return whether more than half of the tensors of the model's encoder are missing."""
    base = model.base_model
    prefix = "" if base is model else f"{model.base_model_prefix}."
    names = {f"{prefix}{n}" for n, _ in base.named_parameters() if not n.startswith("pooler.")}
    return 2 * len(names & set(missing)) > len(names)


def some(names: Sequence[str], most: int = 4) -> str:
    """Name the first few of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# ---------------------------------------------------------------- names


def unwrap_names(weights: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Rename weights as the model's class has them: without the prefix of whatever held it.

    The prefix is not looked up but found: what stands before the model's own names, for most of
    them, be it `module.`, `model.`, `_orig_mod.` or an attribute of somebody's class.
    """
    plain = {re.sub(rf"(?<![^.]){WRAPPERS}", "", name): value for name, value in weights.items()}
    for own in (model, model.base_model):  # with its head, else the encoder alone
        prefix, count = common_prefix(plain, own.state_dict())
        if 2 * count >= len(own.state_dict()):
            return {name.removeprefix(prefix): value for name, value in plain.items()}
    return plain


def common_prefix(names: Collection[str], wanted: Collection[str]) -> tuple[str, int]:
    """Find the prefix under which most of the wanted names occur, and how many do."""
    wanted, found = {*wanted}, Counter[str]()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                found[name.removesuffix(".".join(parts[start:]))] += 1
                break
    return found.most_common(1)[0] if found else ("", 0)


def read_weights(path: str | os.PathLike, **kwargs: Any) -> dict[str, Tensor]:
    """Read the safetensors of a folder or a hub name. Args: as for `weight_files`."""
    files = weight_files(path, **kwargs)
    return {name: value for file in files for name, value in load_file(file).items()}


def weight_files(path: str | os.PathLike, **kwargs: Any) -> list[Path]:
    """List the safetensors files of a folder or a hub name; none where they are made on demand.

    Args:
        kwargs: of `from_pretrained`: the revision is used.
    """
    where = {"revision": kwargs.get("revision"), "subfolder": kwargs.get("subfolder", "")}
    missing = {"_raise_exceptions_for_missing_entries": False}
    single = cached_file(path, "model.safetensors", **where, **missing)
    files = [single]
    if single is None:
        index = cached_file(path, "model.safetensors.index.json", **where, **missing)
        if index is None:
            return []
        files, _ = get_checkpoint_shard_files(path, index, **where)
    return [Path(file) for file in files]


# ---------------------------------------------------------------- values


def initialise_missing(model: PreTrainedModel, missing: Collection[str]) -> None:
    """Give missing parameters the values that a new model has, in place.

    `from_pretrained` initialises modules of torch. Parameters of a model's own modules, such as the
    bias of many masked-LM heads, stay memory that nobody has written to. Random numbers are drawn
    from a stream of their own, so that what comes later does not depend on this.
    """
    own = {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in missing and not _is_of_torch(model, name)
    }
    if not own:
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        fresh = dict(type(model)(model.config).named_parameters(remove_duplicate=False))
        for name, parameter in own.items():
            parameter.copy_(fresh[name])


def _is_of_torch(model: PreTrainedModel, name: str) -> bool:
    """Whether a module of torch itself holds a parameter, such as nn.Linear."""
    return type(model.get_submodule(name.rpartition(".")[0])).__module__.startswith("torch.nn")


def check_fractions(model: PreTrainedModel, path: str | os.PathLike, **kwargs: Any) -> None:
    """Check that no weights were saved as whole numbers, which would be taken for fractions.

    Args:
        kwargs: as for `weight_files`.

    Raises:
        ValueError: naming a tensor and its file.
    """
    whole = {name for name, buffer in model.named_buffers() if not buffer.is_floating_point()}
    known = {"position_ids", "token_type_ids", *(name.rpartition(".")[2] for name in whole)}
    for file in weight_files(path, **kwargs):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (it is no dict)
                kind = weights.get_slice(name).get_dtype()
                if kind.startswith(("I", "U", "BOOL")) and name.rpartition(".")[2] not in known:
                    raise ValueError(
                        f"{file} holds {name} as whole numbers ({kind}): quantised or damaged "
                        "weights are not read; save them as float32"
                    )


def check_finite(model: PreTrainedModel) -> None:
    """Check that all weights are finite numbers.

    Raises:
        ValueError: naming one that is not.
    """
    bad = not_finite(model)
    if bad:
        raise ValueError(
            f"{len(bad)} of its weights hold NaN or infinity, such as {bad[0]}: a training that "
            "diverged wrote them; take an earlier checkpoint"
        )


@torch.no_grad()
def not_finite(model: torch.nn.Module) -> list[str]:
    """List the names of parameters with a value that is NaN or infinite."""
    return [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
