"""`llm-mcts serve`: our search behind an endpoint of OpenAI's form, so that a client searches by changing its base URL.

    llm-mcts serve --port 8000 --solver.search.name mcts
    OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none").chat.completions.create(model="embedded", messages=[…])

The socket is bound before the model loads, so that a port in use is reported at once. The first SIGINT or SIGTERM closes the
gate: new questions and /health get 503, searches under way may finish for a while, then the process ends with status 0. The
second ends them at once. The model runs on the server's own event loop: between two of its batch steps requests are read.
"""

import os
import socket
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llm_mcts.errors import ConfigError
from llm_mcts.fields import Settings, Within
from llm_mcts.serving.limits import Gate, LimitsConfig
from llm_mcts.settings import SolverConfig
from llm_mcts.solver import Solver

if TYPE_CHECKING:
    import uvicorn

# Seconds that replies get to be sent after the last search has ended.
_LAST_REPLIES = 5


@dataclass(frozen=True)
class ServeConfig(Settings):
    """A solver and where it answers."""

    solver: SolverConfig = field(default_factory=SolverConfig)
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 or :: for all of this machine."""
    port: Annotated[int, Within(0, 65535)] = 8000
    """Port; 0: any free one."""
    model: str | None = None
    """Name that clients call the model by; none: the engine's model, a folder by its last part."""
    key_variable: str | None = None
    """Environment variable that holds the key which clients must send as `Authorization: Bearer KEY`; none: no key."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)

    @property
    def name(self) -> str:
        """The model's name for clients."""
        model = self.solver.engine.model
        return self.model or (Path(model).resolve().name if Path(model).is_dir() else model)

    def read_key(self) -> str | None:
        """The key from the environment.

        Raises:
            ConfigError: the variable is named and not set, which would leave the server open.
        """
        if self.key_variable is None:
            return None
        if not (key := os.environ.get(self.key_variable, "").strip()):
            raise ConfigError(f"key_variable is '{self.key_variable}', which is not set; export it, or leave key_variable out")
        return key


class Server:
    """A server that listens; `run` answers until it is stopped."""

    def __init__(self, config: ServeConfig, solver: Solver | None = None) -> None:
        """Bind the socket and load the models; `solver` takes the place of what the configuration names.

        Raises:
            ConfigError, ModelError: something named in the configuration cannot be used; the port is taken; FastAPI is missing.
        """
        self.config = config
        key = config.read_key()
        _check_installed()
        self._socket = bind(config.host, config.port)
        try:
            from llm_mcts.serving.app import build_app

            self.gate = Gate(config.limits)
            self.solver = solver or Solver(config.solver)
            self._app = build_app(self.solver, config.name, key, config.limits, self.gate)
        except BaseException:
            self._socket.close()
            raise
        self._uvicorn = _uvicorn_server(self._app, self.gate, self.solver)

    @property
    def url(self) -> str:
        """The base URL for clients on this machine."""
        host, port = self._socket.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"

    @property
    def warning(self) -> str | None:
        """A word about a server that anyone may use from elsewhere."""
        host = self._socket.getsockname()[0]
        if ip_address(host.partition("%")[0]).is_loopback or self.config.key_variable is not None:
            return None
        return (
            f"warning: {host} can be reached from other machines and no key is asked for; set key_variable, or host 127.0.0.1"
        )

    def run(self) -> None:
        """Answer until SIGINT or SIGTERM, or `stop`."""
        self._uvicorn.run([self._socket])

    async def serve(self) -> None:
        """`run` on the caller's event loop."""
        await self._uvicorn.serve([self._socket])

    def stop(self) -> None:
        """As the signals do. From another thread or a signal handler too."""
        self.gate.close()

    def close(self) -> None:
        """Stop listening without having run."""
        self._socket.close()


def _check_installed() -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"serving needs a package that is not installed ({error}); pip install 'llm-mcts[serve]'") from error


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the address is taken or not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # what follows repeats the address
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}; choose another --host or --port") from error


def _uvicorn_server(app: Any, gate: Gate, solver: Solver) -> "uvicorn.Server":
    """Uvicorn with our way to stop: its own closes the socket first, so that /health could never say that we are going."""
    import uvicorn

    class Draining(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            gate.close()

        async def on_tick(self, counter: int) -> bool:
            return await super().on_tick(counter) or gate.drained()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await super().shutdown(sockets)
            await solver.aclose()

    settings: dict[str, Any] = {"log_config": None, "server_header": False, "lifespan": "off"}
    return Draining(uvicorn.Config(app, timeout_graceful_shutdown=_LAST_REPLIES, **settings))
