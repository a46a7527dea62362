"""app.py on a machine from which nothing else can be reached: whoever calls out, or asks for an address, waits for
minutes before it fails, and a line in the log says who was called.
"""

import ipaddress
import runpy
import socket
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SILENCE_S = 150


def is_here(host) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in (None, "", "localhost", socket.gethostname())
    return address.is_loopback or address.is_unspecified


def blackhole(event, arguments) -> None:
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if not is_here(host):
        print(f"called {host}", flush=True)
        time.sleep(SILENCE_S)
        raise OSError(f"{host} cannot be reached")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.addaudithook(blackhole)
    runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
