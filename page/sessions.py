"""Who speaks and who listens: the loaded models, and one `Session` a visitor."""

import threading
from dataclasses import dataclass, field

from PIL import Image

import mlmamba
from mlmamba.errors import UserError


class Speakers:
    """The models, loaded at first need and shared by all visitors."""

    def __init__(self, first: str, device: str):
        self.first, self.device = first, device
        self.names = list(dict.fromkeys([first, "tiny", "3b"]))
        self._lock = threading.Lock()
        self._models = {first: mlmamba.load(first, device=device)}

    def get(self, name: str) -> mlmamba.MLMamba:
        """Raises UserError when the model can't be had here."""
        if name not in self.names:
            raise UserError(f"Please choose one of {', '.join(self.names)}.")
        with self._lock:
            if name not in self._models:
                if name == "3b" and self._models[self.first].backend.device.type == "cpu":
                    raise UserError("The 3B model needs a GPU, and this page runs on a CPU; choose another.")
                self._models[name] = mlmamba.load(name, device=self.device)
            return self._models[name]


@dataclass
class Session:
    """One visitor. `lock` is held while an answer is written; `pending` is a question not yet answered."""

    model: str
    connector: str | None = None
    image: Image.Image | None = None
    conversation: mlmamba.Conversation | None = None
    pending: str | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def halt(self) -> str | None:
        """End the running answer and wait until it has ended. Returns a question not begun."""
        waiting = None if self.lock.locked() else self.pending
        self.stop.set()
        self.pending = None
        if self.lock.acquire(timeout=60):
            self.lock.release()
        return waiting

    @property
    def turns(self) -> list[tuple[str, str]]:
        return self.conversation.turns if self.conversation else []
