"""Python imports this by itself where the folder is on PYTHONPATH: no connection leaves the
machine, and each that is tried is written down in the file that NETWORK_ATTEMPTS names."""

import os
import socket

_connect = socket.socket.connect
_lookup = socket.getaddrinfo
OWN_NAME = socket.gethostname()


def _refuse(host: object) -> None:
    with open(os.environ["NETWORK_ATTEMPTS"], "a", encoding="utf-8") as file:
        file.write(f"{host}\n")
    raise OSError("the network is blocked")


def _is_local(host: object) -> bool:
    return host in (None, "", "localhost", "::1", OWN_NAME) or str(host).startswith("127.")


def connect(self, address):
    inside = self.family not in (socket.AF_INET, socket.AF_INET6)
    if not inside and not _is_local(address[0]):
        _refuse(address[0])
    return _connect(self, address)


def getaddrinfo(host, *args, **kwargs):
    if not _is_local(host):
        _refuse(host)
    return _lookup(host, *args, **kwargs)


if "NETWORK_ATTEMPTS" in os.environ:
    socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
