"""Further pretraining, fine-tuning and probing of text encoders."""

import os

# On a CPU, torch's oneDNN keeps code for the last 1,024 shapes of tensors. Batches of ever other
# lengths fill that over thousands of steps, and its small blocks cut free memory into pieces which
# the next tensors do not fit into, so that a process grows by a third. Read at the first use.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
