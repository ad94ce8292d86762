"""ML-Mamba: a multimodal language model whose pictures and words both pass through Mamba-2."""

from mlmamba.chat import Conversation, Timings
from mlmamba.config import MLMambaConfig
from mlmamba.connector import scan_orders
from mlmamba.errors import UserError
from mlmamba.images import open_image
from mlmamba.model import MLMamba, load
from mlmamba.ssd import Scan

__all__ = [
    "Conversation",
    "MLMamba",
    "MLMambaConfig",
    "Scan",
    "Timings",
    "UserError",
    "load",
    "open_image",
    "scan_orders",
]
