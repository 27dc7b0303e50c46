"""The hosts and addresses that may be contacted for a URL that comes from a request."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote, urlsplit

from trainer.core.errors import DatasetError, Unavailable
from trainer.core.text import printable

Resolve: TypeAlias = Callable[[str, int], Sequence[str]]
LONGEST_URL = 8192  # characters
_HIDDEN_V4 = (  # IPv6 ranges that contain an IPv4 address: network, number of bits to the right of that address
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),
    (ipaddress.IPv6Network("::/96"), 0),
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
)
_METADATA = tuple(  # metadata and control services of clouds outside of the link-local ranges; never contacted
    ipaddress.ip_network(text)
    for text in (
        "100.100.100.200/32",
        "168.63.129.16/32",  # a public address that each host of its cloud answers itself
        "192.0.0.192/32",
        "192.80.8.124/32",
        "fd00:42::42/128",
        "fd00:c1::a9fe:a9fe/128",
        "fd00:ec2::/32",
        "fd20:ce::254/128",
    )
)
_SPECIAL = tuple(  # networks that are not public, although some Python versions treat them as public
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.175.48.0/24",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
)


@dataclass(frozen=True)
class Gate:
    """The hosts and addresses that may be contacted. `is_own_path` selects the paths that may be requested from `own`."""

    allowed: tuple[str, ...]
    own: tuple[str, ...]
    resolve: Resolve
    is_own_path: Callable[[str], bool] = lambda _: True

    def check_url(self, url: str) -> str:
        """Return the URL to request: encoded, without a fragment. Raises DatasetError for a URL that is not allowed."""
        if len(url) > LONGEST_URL:
            raise DatasetError(f"{printable(url, 200)} is longer than {LONGEST_URL} characters.")
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise DatasetError(f"{printable(url, 200)} is not a valid URL.") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise DatasetError(f"{printable(url, 200)} is not an http or https URL. Use one of these schemes.")
        if parts.username is not None or parts.password is not None:
            raise DatasetError(f"{printable(url, 200)} contains a user name or a password; use a signed URL instead.")
        self.check_host(parts.hostname, port)
        host = _ascii(parts.hostname, url)
        known = _names(host, port)
        if known & {*self.own} and not known & {*self.allowed} and not self.is_own_path(parts.path):
            raise DatasetError(
                f"{printable(url, 200)} does not name an object in a bucket for datasets. Name an object of the datasets "
                "bucket, or let the operator add the bucket to ALLOWED_BUCKETS."
            )
        netloc = f"[{host}]" if ":" in host else host
        if parts.port:
            netloc += f":{port}"
        safe = "%/:=&?~#+!$,;'@()*[]"
        query = f"?{quote(parts.query, safe=safe)}" if parts.query else ""
        return f"{parts.scheme}://{netloc}{quote(parts.path or '/', safe=safe)}{query}"

    def check_host(self, host: str, port: int) -> None:
        if self.allowed and not _names(host, port) & {*self.allowed, *self.own}:
            raise DatasetError(
                f"Host {_short(host)} is not allowed; upload the dataset to the storage bucket, or let the "
                "operator add the host to ALLOWED_DATASET_HOSTS.",
            )

    def addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses of `host`. Raises DatasetError unless all of them are allowed."""
        self.check_host(host, port)
        may_be_private = f"{host.rstrip('.').lower()}:{port}" in {*self.allowed, *self.own}
        try:
            found = list(dict.fromkeys(self.resolve(host, port)))
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise Unavailable(f"the name of host {_short(host)} cannot be resolved now") from None
            raise DatasetError(f"Host {_short(host)} does not exist; check the URL.") from None
        except (UnicodeError, OSError):
            raise DatasetError(f"Host {_short(host)} cannot be resolved. Check the URL.") from None
        if not found or not all(_may_contact(address, may_be_private=may_be_private) for address in found):
            raise DatasetError(
                f"Host {_short(host)} is at an address inside a private network, which is not allowed for a dataset; "
                "upload the dataset to the storage bucket instead.",
            )
        return found


def _names(host: str, port: int) -> set[str]:
    """Return the two forms in which a list of hosts can contain this host."""
    name = host.rstrip(".").lower()
    return {name, f"{name}:{port}"}


def resolve_by_system(host: str, port: int) -> list[str]:
    return [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _may_contact(text: str, *, may_be_private: bool) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return all(_is_open(a, may_be_private=may_be_private) for a in (address, *_hidden(address)))


def _is_open(a: ipaddress.IPv4Address | ipaddress.IPv6Address, *, may_be_private: bool) -> bool:
    if a.is_loopback:
        return may_be_private
    if a.is_link_local or a.is_multicast or a.is_unspecified or any(a in n for n in _METADATA):
        return False
    if any(a in network for network, _ in _HIDDEN_V4):
        return True  # the embedded IPv4 address is checked separately
    is_public = a.is_global and not a.is_private and not a.is_reserved and not any(a in n for n in _SPECIAL)
    return is_public or may_be_private


def _hidden(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses inside an IPv6 address; a gateway would contact them."""
    if not isinstance(address, ipaddress.IPv6Address) or address.is_loopback or address.is_unspecified:
        return []
    value = int(address)
    return [ipaddress.IPv4Address(value >> right & 0xFFFFFFFF) for network, right in _HIDDEN_V4 if address in network]


def _ascii(host: str, url: str) -> str:
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        raise DatasetError(f"{printable(url, 200)} has an invalid host name. Check the URL.") from None


def _short(host: str) -> str:
    return repr(host[:100])
