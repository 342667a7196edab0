"""Islands on the network: gRPC with mutual TLS, the one file that knows it.

Two islands are joined by lanes: streams in both directions, each a connection of its own, opened by whoever can reach
the other. The first lane that is open carries messages; what is fetched by its hash comes in pieces over all of them,
and goes on where it was when a lane breaks. A receiver asks for no more than it has room for.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar

import grpc
import grpc.aio

from konvoi.errors import FleetError, KonvoiError
from konvoi.fleet.wire.lanes import DATA, GET, MOST_SERVED, Fetching, Lane, Reach, of_message
from konvoi.security.identity import Identity

T = TypeVar("T")
METHOD = "/konvoi.Wire/Lane"
RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
LIVED_S = 5.0  # a lane that has lived so long was no refusal
PULSE_S = 2.0  # between two signs of life
GRACE_S = 1.0  # for a lane to open again, before its peer is told to be out of reach
OPTIONS = [
    ("grpc.max_receive_message_length", 2 << 20),
    ("grpc.max_send_message_length", 2 << 20),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
]
log = logging.getLogger(__name__)


class Peers:
    """The wire of one island. Everything but `join`, `send`, `fetch`, `after` and `work` runs in its own thread."""

    def __init__(
        self,
        identity: Identity,
        *,
        hello: bytes,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
        address: str = "127.0.0.1:0",
        num_lanes: int = 1,
        largest: int = 1 << 30,
        on_refused: Callable[[str, str], None] = lambda peer, why: None,
    ) -> None:
        """`hello` is what both sides of a lane must say alike: run, recipe and version. `largest`: bytes that may be
        fetched at once."""
        self.identity, self.hello, self.encode, self.decode = identity, hello, encode, decode
        self.num_lanes, self.on_refused = num_lanes, on_refused
        self.name, self.port = identity.name, 0
        self.received_bytes, self.sent_bytes = 0, 0
        self._receive: Callable[[str, Any], None] = lambda sender, message: None
        self._find: Callable[[str], bytes | None] = lambda hash: None
        self._reach = Reach()
        self._fetching = Fetching(largest)
        self._lanes = self._fetching.lanes
        self._dialing: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._banned: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._hands = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="konvoi-encode")
        self._thread = threading.Thread(target=self._run, name="konvoi-wire", daemon=True)
        started: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._thread.start()
        self._loop.call_soon_threadsafe(lambda: self._spawn(self._serve(address, started)))
        self.port = started.result(30)

    # -- from any thread -------------------------------------------------------------------------------------------

    def join(self, name: str, receive: Callable[[str, Any], None], find: Callable[[str], bytes | None]) -> None:
        assert name == self.name
        self._receive, self._find = receive, find

    def watch(self, name: str, reaches: Callable[[str, bool], None]) -> None:
        assert name == self.name
        self._reach.tell = reaches

    def dial(self, addresses: Mapping[str, Callable[[], str | None]]) -> None:
        """Keep lanes open to these peers, by name, from now on. Where each is, is asked at every try; None: not known
        yet."""
        for name, address in addresses.items():
            if name != self.name:
                self._soon(functools.partial(self._dial, name, address))

    def send(self, sender: str, to: str, message: Any, about: tuple[str, bytes] | None = None) -> None:
        frame = of_message(self.encode(message), about)
        self._soon(lambda: self._put(to, frame))

    def fetch(self, name: str, peer: str, hash: str, then: Callable[[bytes | None], None]) -> None:
        if re.fullmatch("[0-9a-f]{32}", hash):
            self._soon(lambda: self._fetching.begin(peer, bytes.fromhex(hash), then))
        else:
            self._soon(lambda: then(None))

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self._soon(lambda: self._loop.call_later(seconds, call))

    def work(self, function: Callable[[], T], then: Callable[[T], None]) -> None:
        def work() -> None:
            found = function()
            self._soon(lambda: then(found))

        self._hands.submit(work)

    def ban(self, peer: str) -> None:
        """Hear nothing more from a peer: its certificate was revoked."""
        self._soon(lambda: self._ban(peer))

    def open_lanes(self) -> dict[str, int]:
        return {peer: len(lanes) for peer, lanes in list(self._lanes.items()) if lanes}

    def close(self) -> None:
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()
        self._hands.shutdown(wait=True, cancel_futures=True)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _soon(self, call: Callable[[], Any]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self, address: str, started: concurrent.futures.Future[int]) -> None:
        try:
            one = self.identity
            credentials = grpc.ssl_server_credentials(
                [(one.key, one.certificate)], root_certificates=one.authority, require_client_auth=True
            )
            self._server = grpc.aio.server(options=OPTIONS)
            handler: Any = grpc.stream_stream_rpc_method_handler(self._accept)
            _, service, method = METHOD.split("/")
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
            port = self._server.add_secure_port(address, credentials)
            await self._server.start()
            self._spawn(self._feel())
            started.set_result(port)
        except Exception as error:
            started.set_exception(FleetError("this island cannot listen", found=f"{address}: {error}"))

    async def _feel(self) -> None:
        while True:
            await asyncio.sleep(PULSE_S)
            self._reach.feel(self._lanes, self._loop.time())

    async def _stop(self) -> None:
        for task in list(self._dialing.values()):
            task.cancel()
        await asyncio.gather(*self._dialing.values(), return_exceptions=True)
        await self._server.stop(0.2)
        ours = [task for task in self._tasks if not task.done()]  # the rest is gRPC's, and ends with its server
        for task in ours:
            task.cancel()
        await asyncio.gather(*ours, return_exceptions=True)

    # -- lanes -----------------------------------------------------------------------------------------------------

    async def _accept(
        self, stream: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        names = list(context.auth_context().get("x509_common_name", ()))
        peer = names[0].decode() if names else ""
        lane = Lane(peer)
        reader = self._spawn(self._read(lane, stream))
        reader.add_done_callback(lambda task: lane.end())
        try:
            yield b"H" + self.hello
            async for frame in lane.frames():
                self.sent_bytes += len(frame)
                yield frame
        finally:
            reader.cancel()
            self._lost(lane)

    def _dial(self, peer: str, address: Callable[[], str | None]) -> None:
        for number in range(self.num_lanes):
            old = self._dialing.get((peer, number))
            if old is not None:
                old.cancel()
            self._dialing[peer, number] = self._spawn(self._keep_open(peer, address, number))

    async def _keep_open(self, peer: str, address: Callable[[], str | None], number: int) -> None:
        one, tries = self.identity, 0
        credentials = grpc.ssl_channel_credentials(one.authority, one.key, one.certificate)
        options = [
            *OPTIONS,
            ("grpc.ssl_target_name_override", peer),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 5_000),
        ]
        while peer not in self._banned:
            where = address()
            if where is None:
                await asyncio.sleep(RETRY_S[0])
                continue
            async with grpc.aio.secure_channel(where, credentials, options=options) as channel:
                lane, opened = Lane(peer), self._loop.time()
                call: Any = channel.stream_stream(METHOD)()
                writer = self._spawn(self._write(lane, call))
                try:
                    await self._read(lane, call)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
                    log.debug("lane %d of %s to %s: %s", number, self.name, peer, error)
                finally:
                    tries = 0 if self._loop.time() > opened + LIVED_S else tries + 1
                    writer.cancel()
                    call.cancel()
                    self._lost(lane)
            await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])

    async def _write(self, lane: Lane, call: Any) -> None:
        await call.write(b"H" + self.hello)
        async for frame in lane.frames():
            self.sent_bytes += len(frame)
            await call.write(frame)

    async def _read(self, lane: Lane, stream: Any) -> None:
        is_open = False
        async for frame in stream:
            self.received_bytes += len(frame)
            if not is_open:
                if frame != b"H" + self.hello or lane.peer in self._banned or not lane.peer:
                    self.on_refused(lane.peer, "it says another hello: another run, recipe or version")
                    return
                is_open = True
                self._fetching.opened(lane)
            self._reach.heard(lane, self._loop.time())
            if frame[:1] in (b"H", b"P"):
                continue
            try:
                self._hear(lane, frame)
            except KonvoiError as error:
                self.on_refused(lane.peer, error.message)
            except Exception as error:  # the lane stays, whatever one frame has done
                log.exception("what %s has sent could not be taken", lane.peer)
                self.on_refused(lane.peer, repr(error))

    def _lost(self, lane: Lane) -> None:
        for task in lane.serving:
            task.cancel()
        self._fetching.lost(lane)
        self._loop.call_later(GRACE_S, lambda: None if self._lanes.get(lane.peer) else self._reach.gone(lane.peer))

    def _ban(self, peer: str) -> None:
        self._banned.add(peer)
        for (name, _), task in self._dialing.items():
            if name == peer:
                task.cancel()
        for lane in list(self._lanes.get(peer, ())):
            self._lost(lane)

    def _put(self, to: str, data: bytes) -> None:
        """A message is lost where no lane is open, or one is too full: whoever misses it asks again."""
        lane = next((lane for lane in reversed(self._lanes.get(to, [])) if not lane.is_full), None)
        if lane is not None:  # the one that was opened last: an older one may be dead, and nobody knows yet
            lane.put(data)

    def _hear(self, lane: Lane, frame: bytes) -> None:
        kind, body = frame[:1], frame[1:]
        if kind in (b"A", b"L"):
            kind, body = b"M", self._fetching.bring(lane, body, is_here=kind == b"A")
        if kind == b"M":
            self._receive(lane.peer, self.decode(body))
        elif kind == b"G" and len(body) == GET.size and len(lane.serving) < MOST_SERVED:
            task = self._spawn(self._fetching.give(lane, body, self._find))
            lane.serving.add(task)
            task.add_done_callback(lane.serving.discard)
        elif kind == b"D" and len(body) >= DATA.size:
            self._fetching.take(lane, body)
        elif kind == b"N":
            self._fetching.gone(lane, body)
        else:
            self.on_refused(lane.peer, "a frame of no kind")
