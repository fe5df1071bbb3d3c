"""HTTP/1.1 by httptools, with bounded heads: what uvicorn reads faster than by h11, which bounds them itself."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD = 2**14


class BoundedHttp(HttpToolsProtocol):
    """Answers 400 to a head, or to trailers, of more than `MOST_HEAD` bytes; one that never ends is not kept in memory.

    It also answers 400 to a request without a host, or with several, as RFC 9112 (section 3.2) says.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._pending, self._advanced = 0, False

    def data_received(self, data: bytes) -> None:
        self._advanced = False
        super().data_received(data)
        self._pending = 0 if self._advanced else self._pending + len(data)
        if self._pending > MOST_HEAD and not self.transport.is_closing():
            self.send_400_response(f"The head of the request has more than {MOST_HEAD:,} bytes.")

    def on_headers_complete(self) -> None:
        self._advanced = True
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD:
            raise ValueError("the head is too long")  # whoever called the parser answers 400
        if self.parser.get_http_version() == "1.1" and [name for name, _ in self.headers].count(b"host") != 1:
            raise ValueError("the request does not name one host")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._advanced = True
        super().on_message_complete()
