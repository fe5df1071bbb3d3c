"""`anytime predict --server` of a broken or hostile server: one sentence and exit code 1, in bounded time."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anytime.cli import main
from anytime.server import client

ANSWER = {"step": 1, "steps": 3, "reason": "", "confidence": 0.5, "macs": 10, "class": "cat", "seconds": 0.1, "missed": False}
END = ANSWER | {"step": 2, "reason": "deadline"}


def sent(*lines: dict[str, Any] | str, head: str = "200 OK") -> bytes:
    body = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    return f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def moved(to: str) -> bytes:
    return sent(head=f"302 Found\r\nLocation: {to}")


REPLIES = {
    "no missed": (sent({key: value for key, value in ANSWER.items() if key != "missed"}), "an answer lacks one of step, "),
    "a list": (sent("[]\n"), "an answer lacks one of step, "),
    "macs": (sent(END | {"macs": 10**400}), "macs of an answer lies outside 0..1e+24"),
    "digits": (sent('{"step": ' + "9" * 5000 + "}\n"), "is damaged: Exceeds the limit"),
    "seconds": (sent(END | {"seconds": float("inf")}), "seconds of an answer lies outside"),
    "confidence": (sent(END | {"confidence": float("nan")}), "confidence of an answer lies outside 0..1"),
    "a truth": (sent(END | {"step": True}), "an answer lacks one of step, "),
    "class": (sent(END | {"class": "x" * 10_000}), "a class of no name"),
    "no end": (sent(ANSWER), "broke off before its last answer"),
    "nothing": (sent(), "broke off before its last answer"),
    "half a line": (sent(ANSWER, '{"step": 2'), "is damaged"),
    "cut": (sent(ANSWER, END)[:-100], "is damaged"),
    "cut between lines": (sent(ANSWER, END).partition(b'{"step": 2')[0], "broke off before its last answer"),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "broke off before its last answer"),
    "beyond the last step": (sent(*(ANSWER | {"step": n} for n in range(1, 9))), "a step beyond the last"),
    "the same step": (sent(*[ANSWER] * 9), "do not improve from step to step"),
    "other steps": (sent(*(ANSWER | {"step": n, "steps": n} for n in range(1, 9))), "do not improve from step to step"),
    "garbage": (b"hello\r\n\r\n", "is none of this library's servers: hello"),
    "a header": (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", "is none of this library's servers: got more than"),
    "headers": (b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 200 + b"\r\n", "is none of this library's servers: got more than"),
    "an error": (b"HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "it answered with status 500"),
    "an error of a list": (sent("[1]", head="500 x"), "it answered with status 500"),
    "a file": (moved("file:///etc/passwd"), "it answered with status 302"),
    "another server": (moved("http://127.0.0.1:1/"), "it answered with status 302"),
    "no address": (moved("http://[::1"), "it answered with status 302"),
    "no port": (moved("http://127.0.0.1:xx/"), "it answered with status 302"),
}


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("no_proxy", "*")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """The address of a server that does what a function does with its first connection."""
    threads = []

    def start(answer: Callable[[socket.socket], None]) -> str:
        listening = socket.create_server(("127.0.0.1", 0))

        def once() -> None:
            with listening, listening.accept()[0] as connection:
                connection.settimeout(5)
                while not connection.recv(65536).endswith(b"\x00IEND\xaeB`\x82"):
                    pass
                answer(connection)

        threads.append(threading.Thread(target=once, daemon=True))
        threads[-1].start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("kind", REPLIES)
def test_a_broken_reply_ends_in_one_sentence(kind: str, image: str, serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    reply, message = REPLIES[kind]
    assert main(["predict", "m", image, "--server", serve(lambda connection: connection.sendall(reply))]) == 1
    error = capsys.readouterr().err
    assert error.startswith("anytime predict: error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("start", ["", "HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_never_ends_is_left(
    start: str, image: str, serve: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends a byte now and then, within its headers or an answer."""
    monkeypatch.setattr(client, "_PATIENCE", 0.2)
    left = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(start.encode())
        while not left.wait(0.01):
            connection.sendall(b"x")

    assert main(["predict", "m", image, "--server", serve(drip), "--deadline", "10ms"]) == 1
    left.set()
    assert "has not ended its answer within 0.22 s; give another --deadline" in capsys.readouterr().err


def test_a_reply_without_end_is_not_kept(image: str, serve: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_BODY", 10_000)
    reply = sent(*(ANSWER | {"step": n, "steps": 1000, "class": "x" * 500} for n in range(1, 1000)))
    assert main(["predict", "m", image, "--server", serve(lambda connection: connection.sendall(reply))]) == 1
    assert "its answer has more than 10,000 bytes" in capsys.readouterr().err


def test_the_last_answer_may_repeat_a_step(image: str, serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    reply = sent(ANSWER, ANSWER | {"reason": "deadline"}, "garbage after the end")
    assert main(["predict", "m", image, "--server", serve(lambda connection: connection.sendall(reply))]) == 0
    assert capsys.readouterr().out.count("step 1/3") == 1
