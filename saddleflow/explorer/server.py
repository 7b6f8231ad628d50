"""The web server of the explorer: the marimo app on a port."""

import socket
import webbrowser
from importlib.util import find_spec
from pathlib import Path
from threading import Timer

from saddleflow._backend.checks import require

# Seconds after which the browser is opened: the server listens by then.
BROWSER_DELAY = 1.0


def check_marimo() -> None:
    """Refuse to start where marimo is not installed.

    Raises:
        ImportError: with the remedy.
    """
    if find_spec("marimo") is None:
        raise ImportError('The explorer needs marimo, which is not installed: pip install "saddleflow[explore]"')


def check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on.

    Raises:
        ValueError: a host that is not this machine's, or a port that is taken.
    """
    require(0 <= port <= 65535, "port", "be from 0 (any free one) to 65535", port)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        remedy = "Take --port 0 for any free port, and --host 127.0.0.1 for this machine alone."
        raise ValueError(
            f"`host`, `port` must be free to listen on, but got {host}:{port}: {error}. {remedy}"
        ) from None


def free_port(host: str) -> int:
    """A port that nobody listens on."""
    with socket.socket() as tried:
        tried.bind((host, 0))
        return int(tried.getsockname()[1])


def serve(host: str, port: int, browser: bool) -> None:
    """Serve the page until the process ends.

    Args:
        host: address to listen on; 127.0.0.1 is this machine alone.
        port: port to listen on.
        browser: whether to open the page in the browser.
    """
    import marimo
    import uvicorn  # marimo brings it

    page = Path(__file__).with_name("app.py")
    app = marimo.create_asgi_app(quiet=True).with_app(path="/", root=str(page)).build()
    if browser:
        Timer(BROWSER_DELAY, webbrowser.open, [f"http://{host}:{port}/"]).start()
    uvicorn.run(app, host=host, port=port, log_level="warning")
