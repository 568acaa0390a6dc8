"""Whether a server can be reached: an answer within seconds, where libraries retry for minutes without a network."""

from __future__ import annotations

import socket
import threading
import urllib.parse
import urllib.request
from contextlib import suppress
from typing import List, Optional, Tuple

_PORTS = {"http": 80, "https": 443, "socks4": 1080, "socks5": 1080, "socks5h": 1080}


def can_reach(url: str, *, seconds: float = 3.0) -> bool:
    """Tells whether the server of `url`, or the proxy that the environment names for it, accepts a connection.

    The lookup of the name counts towards the time too. It is done in a thread, because it cannot be interrupted.
    """
    place = _first_hop(url)
    if place is None:  # the request will say what is wrong with the address
        return True
    answers: List[bool] = []

    def connect() -> None:
        with suppress(OSError, UnicodeError):
            socket.create_connection(place, timeout=seconds).close()
            answers.append(True)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)


def _first_hop(url: str) -> Optional[Tuple[str, int]]:
    """Returns the host and the port that a request for `url` connects to; None if they cannot be told."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(host):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname and port else None
