"""What a run shows: log lines and progress bars, in a terminal and in a notebook.

Imports nothing heavy before a run has begun.
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bertchain.runtime.distributed import is_main_process

# Whose lines a notebook shows, beside warnings: what a run is about, its scores, what it wrote.
IN_NOTEBOOKS = (
    "bertchain.data.tasks",
    "bertchain.training.prediction.validation",
    "bertchain.competition.run_folder",
    "bertchain.competition.submission",
    "bertchain.pretraining.trainer",
)
MOST_LINES = 12  # of these, of a run in a notebook: of many models the first have to do


def in_kernel() -> bool:
    """Return whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})


def in_notebook() -> bool:
    """Return whether a notebook shows what is printed: a kernel's, or a command's of a cell."""
    return in_kernel() or "JPY_PARENT_PID" in os.environ


def start_logging(quiet: bool = False) -> None:
    """Log progress to standard error, from the main process alone; a notebook gets a few lines.

    Args:
        quiet: whether no progress bar is shown, of whichever library.
    """
    style = {"format": "%(asctime)s %(message)s", "datefmt": "%H:%M:%S"}
    logging.basicConfig(level=logging.WARNING, **style)
    brief = in_notebook()
    level = logging.WARNING if brief else logging.INFO
    logging.getLogger("bertchain").setLevel(level if is_main_process() else logging.ERROR)
    few = FirstLines()
    for logger in map(logging.getLogger, IN_NOTEBOOKS):
        logger.setLevel(logging.INFO if brief and is_main_process() else logging.NOTSET)
        logger.filters = [few] if brief else []
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it raises is said by us
    as_text = in_kernel() and importlib.util.find_spec("ipywidgets") is None  # a line for each
    if quiet or as_text or not is_main_process():
        hide_bars()


class FirstLines(logging.Filter):
    """Lets the first lines pass, and all warnings."""

    lines = 0

    def filter(self, record: logging.LogRecord) -> bool:
        self.lines += record.levelno < logging.WARNING
        return record.levelno >= logging.WARNING or self.lines <= MOST_LINES


# ---------------------------------------------------------------------------- progress bars

_hidden = False


def bars_are_hidden() -> bool:
    """Return whether bars of our own are to be left out: always but in the main process."""
    return _hidden or not is_main_process()


def hide_bars() -> None:
    """Show no progress bar of datasets, transformers, the hub, and our own."""
    import datasets
    import huggingface_hub
    from transformers.utils import logging as transformers_logging

    global _hidden
    _hidden = True
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()


@contextmanager
def bars_as_before() -> Iterator[None]:
    """Show the same bars after the block as before it."""
    import datasets
    import huggingface_hub
    from transformers.utils import logging as transformers_logging

    global _hidden
    before = _hidden
    hub = huggingface_hub.utils
    shown = {
        datasets.enable_progress_bars: not datasets.are_progress_bars_disabled(),
        transformers_logging.enable_progress_bar: transformers_logging.is_progress_bar_enabled(),
        hub.enable_progress_bars: not hub.are_progress_bars_disabled(),
    }
    try:
        yield
    finally:
        if _hidden and not before:
            for enable, was_shown in shown.items():
                if was_shown:
                    enable()
        _hidden = before
