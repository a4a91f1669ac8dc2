"""HTTP requests to URLs that administrators enter: bounded, without redirects, and only to public addresses."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx

TIMEOUT_SECONDS = 10.0  # of a whole request
CONNECTIONS_MAX = 100
RESOLVERS = 4  # host names that are looked up at once
URL_LENGTH_MAX = 2048
_PRIVATE = "leads to a private address, which only TALLY_ALERTS_ALLOW_PRIVATE=true allows"
_INVALID = "must be a valid URL"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # its addresses end with an IPv4 address


class AddressNotAllowed(httpx.TransportError):
    """The URL leads to an address in a private network, or on this machine."""


class CheckedTransport(httpx.AsyncBaseTransport):
    """Resolves the host itself, and connects to an address only if it is public or `allow_private` is set."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        # Threads of its own, because slow name servers must not delay the connections to Redis.
        self._resolver = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="alerts")
        # A connection is not kept: the next request to its address may be for another host.
        limits = httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=0)
        self._transport = httpx.AsyncHTTPTransport(trust_env=False, limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host, port = request.url.raw_host.decode(), request.url.port or {"http": 80, "https": 443}[request.url.scheme]
        addresses = [
            address for address in await self._resolve(host, port) if self._allow_private or is_public(address)
        ]
        if not addresses:
            raise AddressNotAllowed(_PRIVATE)
        # The certificate must be that of the host. The header Host has it already.
        extensions = {**request.extensions, "sni_hostname": host}
        for address in addresses[:-1]:
            with contextlib.suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await self._send(request, address, extensions)
        return await self._send(request, addresses[-1], extensions)

    async def _send(self, request: httpx.Request, address: str, extensions: dict[str, object]) -> httpx.Response:
        url = request.url.copy_with(host=address)
        copy = httpx.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=extensions)
        return await self._transport.handle_async_request(copy)

    async def _resolve(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host, in the order of preference."""
        look_up = partial(socket.getaddrinfo, host.strip("[]"), port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._resolver, look_up)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    async def aclose(self) -> None:
        self._resolver.shutdown(wait=False, cancel_futures=True)
        await self._transport.aclose()


async def post(client: httpx.AsyncClient, url: str, body: bytes, headers: dict[str, str]) -> str:
    """Send a request; return "" if the response is a 2xx, else what is wrong. The response's body is not read."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            async with client.stream("POST", url, content=body, headers=headers) as response:
                return "" if response.is_success else f"the response was {response.status_code}"
    except TimeoutError:
        return f"no response within {TIMEOUT_SECONDS:g} s"
    except httpx.InvalidURL:
        return _INVALID
    except (httpx.HTTPError, OSError) as error:
        return _describe(error, httpx.URL(url).netloc.decode())[:200]


def _describe(error: Exception, host: str) -> str:
    """Return what is wrong with a request that has no response, for a reader who knows neither Python nor TLS."""
    match error:
        case AddressNotAllowed():
            return str(error)
        case socket.gaierror():
            return f"could not find the address of {host}"
        case httpx.ConnectError():
            tls = _tls_error(error)
            return f"could not connect to {host}" + (f": {tls}" if tls else "")
        case httpx.TimeoutException():
            return f"no response within {TIMEOUT_SECONDS:g} s"
        case _:
            return f"{host} sent no valid response"


def _tls_error(error: BaseException | None) -> str:
    """Return why TLS has failed, or "" if that is not the cause of an error."""
    while error and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid ({error.verify_message})"
    return "it does not speak TLS, which https:// needs" if error else ""


def create_client(*, allow_private: bool) -> httpx.AsyncClient:
    """Return a client that follows no redirects, and takes nothing from the environment, such as a proxy."""
    transport = CheckedTransport(allow_private=allow_private)
    return httpx.AsyncClient(transport=transport, timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False)


def url_error(url: str, *, allow_private: bool) -> str:
    """Return what is wrong with the URL of an alert, or "". Where its host leads to is checked at each request."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return _INVALID
    is_text = url.isprintable() and " " not in url and len(url) <= URL_LENGTH_MAX
    if not is_text or parsed.scheme not in {"http", "https"} or not parsed.host or parsed.userinfo:
        return (
            f"must begin with https:// or http:// and have a host, no password, and at most {URL_LENGTH_MAX} characters"
        )
    with contextlib.suppress(ValueError):  # a name
        if not allow_private and not is_public(parsed.host):
            return _PRIVATE
    return _PRIVATE if parsed.host == "localhost" and not allow_private else ""


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or nat64 or ip
    is_local = getattr(ip, "is_site_local", False) or ip.is_multicast or ip.is_reserved
    return ip.is_global and not is_local
