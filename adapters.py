"""LoRA in the encoder, through `peft`; the classifier around it stays what it is."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Trainer

from command_line import InputError, as_input_error
from method_arguments import AdapterArguments


def add_lora(encoder: PreTrainedModel, options: AdapterArguments) -> Any:
    """Put LoRA matrices into the encoder, in place, and freeze the rest of it.

    Returns:
        the `peft.PeftModel` around the encoder, to merge or save the adapter with.

    Raises:
        InputError: if peft is not installed, or there is no such module.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InputError("--lora_r needs the package peft: pip install peft") from error
    config = LoraConfig(
        r=options.lora_r,
        lora_alpha=2 * options.lora_r if options.lora_alpha is None else options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=options.lora_target_modules or "all-linear",
    )
    with as_input_error("--lora_target_modules"):
        return get_peft_model(encoder, config)


def merge_lora(lora: Any, trainer: Trainer, folder: Path | None) -> None:
    """Add the matrices to the weights they stand beside, so that the encoder is plain again.

    Args:
        folder: where they are written first, as `adapter/`; None: nowhere.
    """
    if folder is not None and trainer.is_world_process_zero():
        lora.save_pretrained(folder / "adapter")
    lora.merge_and_unload()
