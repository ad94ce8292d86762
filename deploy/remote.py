"""What the page talks with in place of a model and its conversations: the same, with the weights in replicas."""

import logging
import os
import re
import threading
import uuid
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.config import RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from deploy.replica import Replica, Talk
from mlmamba import MLMamba, MLMambaConfig, backend, hub, weights
from mlmamba.errors import UserError
from mlmamba.images import ImageSource, open_image
from page.elsewhere import Answered, ConversationElsewhere, Wanted
from visualize import Trace

TRIES = 3  # replicas that may die of a question before it is given up
POLL_S = 0.05  # seconds between two looks at whether an answer is to stop
HEALTH_S = 2  # seconds between two looks at whether a replica is alive
log = logging.getLogger("mlmamba.deploy")


def start() -> None:
    """Start Ray and Serve on this machine, without their web pages."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else Ray reports to its makers
    os.environ.setdefault("RAY_worker_niceness", "0")  # else replicas give way to all else on the machine
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="Disabled")


class RemoteModel:
    """What the page uses of `MLMamba`, for a model in replicas. No weights are loaded here."""

    check_connector: Any = MLMamba.check_connector
    chat: Any = MLMamba.chat

    def __init__(self, name: str, device: str, seats: int, replicas: int, kind: type[Replica] = Replica):
        """Returns once all replicas have loaded the model. Raises UserError where they can't."""
        folder = hub.find(name)  # fetched here, once, not by every replica
        hub.tokenizer_file(folder)
        self.config = MLMambaConfig.load(folder / weights.CONFIG)
        gpus = int(backend.choose(device).device.type == "cuda")
        if replicas * gpus > ray.cluster_resources().get("GPU", 0):
            raise UserError(f"{replicas} replicas need a GPU each; start fewer, or take the device cpu.")
        deployment = serve.deployment(
            kind,
            name=Replica.__name__,
            num_replicas=replicas,
            max_ongoing_requests=seats,  # a visitor who finds them taken goes to another replica
            ray_actor_options={"num_cpus": 0, "num_gpus": gpus},  # the cores are shared out below
            request_router_config=RequestRouterConfig(request_router_class=ConsistentHashRouter),
            health_check_period_s=HEALTH_S,
            logging_config={"enable_access_log": False},
        )
        threads = max(1, (os.cpu_count() or 1) // replicas)
        try:
            app = deployment.bind(str(folder), device, seats, threads)
            self.handle = serve.run(app, name=re.sub(r"\W+", "-", name), route_prefix=None)
        except RuntimeError as error:
            raise UserError(f'The replicas could not load "{name}"; Ray\'s logs say why.') from error
        self.n_parameters, where = self.handle.describe.remote().result()
        self.backend = f"{where} · {replicas} replicas"
        self.waiters = ThreadPoolExecutor(128, "waiter")  # as many as the page has threads for

    def start(
        self, image: ImageSource, connector: str | None = None, history: Sequence[tuple[str, str]] = ()
    ) -> "RemoteConversation":
        return RemoteConversation(self, open_image(image), connector, history)

    def stream(self, talk: Talk, wanted: Wanted, stop: threading.Event) -> Generator[str | Answered, None, None]:
        """What the conversation's replica says until `stop`. Raises RayActorError when the replica dies."""
        response = self.handle.options(session_id=talk.id, stream=True).answer.remote(talk, wanted)
        try:
            while not stop.is_set():
                step = self.waiters.submit(next, response, None)
                while not step.done() and not stop.is_set():
                    wait([step], POLL_S)
                if stop.is_set() or (said := step.result()) is None:
                    return
                yield said
        except RayTaskError as error:
            raise error.cause from error
        finally:
            if ray.is_initialized():  # else Ray would start anew, for nothing
                response.cancel()


class RemoteConversation(ConversationElsewhere):
    """A conversation whose state is in a replica. Where that is gone, another one reads the history."""

    model: Any  # a RemoteModel

    def __init__(
        self,
        model: Any,
        image: Image.Image,
        connector: str | None = None,
        history: Sequence[tuple[str, str]] = (),
    ):
        super().__init__(model, image, connector, history)
        self._id = uuid.uuid4().hex
        self._picture = ray.put(np.asarray(image))

    def _talk(self) -> Talk:
        return Talk(self._id, self._picture, self.connector, tuple(self.turns))

    def trace(self, kind: str, picture: str | None, answered: bool) -> Trace:
        handle = self.model.handle.options(session_id=self._id)
        for _ in range(TRIES):
            try:
                return handle.trace.remote(self._talk(), kind, picture, answered).result()
            except RayTaskError as error:
                raise error.cause from error
            except RayActorError:
                log.warning("a replica was lost while it looked; another one looks")
        raise UserError(f"{TRIES} replicas were lost while they looked; try again later.")

    def answered(self, wanted: Wanted, stop: threading.Event) -> Generator[str | Answered, None, None]:
        """The answer; when its replica dies, another one repeats in silence what was said, and goes on."""
        said = ""
        for _ in range(TRIES):
            heard = ""
            try:
                with closing(self.model.stream(self._talk(), wanted, stop)) as steps:
                    for step in steps:
                        heard += step if isinstance(step, str) else ""
                        over = isinstance(step, Answered)
                        if not heard.startswith(said) and (over or not said.startswith(heard)):
                            raise UserError("A replica was lost and another one answers otherwise; ask again.")
                        if over:
                            yield step
                        elif len(heard) > len(said):
                            new, said = heard[len(said) :], heard
                            yield new
                return
            except RayActorError:
                log.warning("a replica was lost in mid-answer; another one goes on")
        raise UserError(f"{TRIES} replicas were lost at this question; ask another one, or try again later.")
