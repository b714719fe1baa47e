"""What is found out over the network of this host: free ports, and readiness of published ones."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from node_agent.engines.base import LOOPBACK
from node_agent.units import Probed, Unit
from node_agent.wire import Endpoint, HttpProbe, TcpProbe


def port_is_free(port: int) -> bool:
    """Whether a loopback port of this host can be listened on. True for one in TIME_WAIT."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def probe_network(unit: Unit, probe: HttpProbe | TcpProbe, timeout_ms: int) -> Probed:
    """As `probe_endpoint`, where the unit publishes the port."""
    where = unit.endpoint(probe.port)
    if where is None:
        return Probed(False, f"port {probe.port} is not published")
    return probe_endpoint(where, probe, timeout_ms)


def probe_endpoint(where: Endpoint, probe: HttpProbe | TcpProbe, timeout_ms: int) -> Probed:
    """Ready: connected, and for http a status from 200 to 399. Redirects are not followed."""
    timeout_s = timeout_ms / 1_000
    try:
        if isinstance(probe, TcpProbe):
            there = (where.host_ip, where.host_port)
            with socket.create_connection(there, timeout_s) as connection:
                # Where nobody listens, a connection can by chance meet itself.
                met_itself = connection.getsockname() == connection.getpeername()
                return Probed(not met_itself, f"port {probe.port}: nobody listens")
        return _probe_http(where, probe.path, timeout_s)
    except TimeoutError:
        return Probed(False, f"no answer within {timeout_ms} ms on port {probe.port}")
    except OSError as error:
        return Probed(False, f"port {probe.port}: {error.strerror or type(error).__name__}")
    except (http.client.HTTPException, ValueError) as error:
        return Probed(False, f"port {probe.port}: not HTTP ({type(error).__name__})")


def _probe_http(where: Endpoint, path: str, timeout_s: float) -> Probed:
    connection = http.client.HTTPConnection(where.host_ip, where.host_port, timeout=timeout_s)
    try:
        connection.connect()
        with _cut_after(timeout_s, connection.sock):
            connection.request("GET", path, headers={"User-Agent": "gpuaas-agent", "Accept": "*/*"})
            status = connection.getresponse().status
    finally:
        connection.close()
    return Probed(200 <= status < 400, f"GET {path} answered {status}")


@contextmanager
def _cut_after(timeout_s: float, connection: socket.socket) -> Iterator[None]:
    """Raises TimeoutError for what took longer in all. A socket's own timeout is for each read,
    which an answer that comes byte by byte never exceeds.
    """
    late = threading.Event()

    def cut() -> None:
        late.set()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(timeout_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, ValueError, http.client.HTTPException):
        if not late.is_set():
            raise
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError
