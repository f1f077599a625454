"""`sluicegate top` in a pseudo terminal: python top_terminal.py PROGRAM ADDRESS (of an admin plane that has the model `scale`)."""

import fcntl
import http.server
import json
import os
import pty
import select
import signal
import struct
import sys
import termios
import threading
import time

import pyte

PROGRAM, ADDRESS = sys.argv[1:]
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m forged"


class Api(http.server.BaseHTTPRequestHandler):
    """Answers of an admin plane whose texts are hostile."""

    def do_GET(self):
        row = {"name": "fraud", "ready": False, "retired": False, "reason": HOSTILE, "versions": 0, "failed_versions": [HOSTILE]}
        model = {"name": "fraud", "ready": False, "retired": None, "reason": HOSTILE, "versions": [], "notes": [HOSTILE]}
        overview = {"models": 1, "found": 1, "wrong": 1, "rows": [row]}
        answers = {"/api/v1/overview": overview, "/api/v1/models/fraud": model}
        body = json.dumps(answers.get(self.path.split("?")[0], {})).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    allow_reuse_address = True


def serve(port):
    server = Server(("127.0.0.1", port), Api)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


class Terminal:
    """The program in a terminal of its own, and what stands on its screen."""

    def __init__(self, address, columns=120, lines=30):
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.parent, self.child = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self.child)
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            fcntl.ioctl(self.child, termios.TIOCSCTTY, 0)
            for descriptor in range(3):
                os.dup2(self.child, descriptor)
            environment = dict(os.environ, SLUICEGATE_ADMIN=address, TERM="xterm-256color")
            os.execve(PROGRAM, [PROGRAM, "top", "--every", "500ms"], environment)

    def resize(self, columns, lines):
        fcntl.ioctl(self.child, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def read(self, seconds):
        if select.select([self.parent], [], [], seconds)[0]:
            part = os.read(self.parent, 65536)
            self.raw += part
            self.stream.feed(part)

    def until(self, what, holds):
        end = time.monotonic() + 20
        while not holds("\n".join(self.screen.display)):
            assert time.monotonic() < end, f"within 20 s: {what}:\n" + "\n".join(self.screen.display)
            self.read(0.05)

    def shows(self, text):
        self.until(f"the screen shows {text!r}", lambda screen: text in screen)

    def press(self, keys):
        os.write(self.parent, keys.encode())

    def ends(self):
        """Waits for the end, and checks that the terminal is as it was."""
        end = time.monotonic() + 20
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            assert time.monotonic() < end, "the program ends"
            self.read(0.02)
        self.read(0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        assert termios.tcgetattr(self.child) == self.before, "the terminal has its modes again"
        assert self.raw.count(b"\x1b[?1049h") == self.raw.count(b"\x1b[?1049l") == 1, "the other screen was left"
        assert self.raw.rstrip().endswith((b"\x1b[?25h", b"\x1b[?1049l")), self.raw[-40:]
        os.close(self.parent)
        os.close(self.child)


def a_real_server():
    terminal = Terminal(ADDRESS)
    terminal.shows("scale")
    terminal.shows("broken")
    terminal.press("/sca")
    terminal.until("the filter leaves one model", lambda screen: "scale" in screen and "broken" not in screen)
    terminal.press("\r\r")
    terminal.shows("CONFIGURED")
    terminal.shows("IN FLIGHT")
    terminal.resize(30, 8)
    os.kill(terminal.pid, signal.SIGWINCH)
    terminal.press("\x1b")
    terminal.until("it fits", lambda screen: "scale" in screen and "q quit" not in screen)
    terminal.press("q")
    terminal.ends()


def a_hostile_server_that_goes_away_and_comes_back():
    server = serve(0)
    port = server.server_address[1]
    terminal = Terminal(f"http://127.0.0.1:{port}")
    terminal.shows("failed: ⟨U+001B⟩]0;owned")
    server.shutdown()
    server.server_close()
    terminal.shows("This shows the last answer. cannot reach")
    terminal.shows("fraud")
    server = serve(port)
    terminal.until("it goes on", lambda screen: "No answer" not in screen and "fraud" in screen)
    assert b"\x1b]0;" not in terminal.raw and "\x9b".encode() not in terminal.raw, terminal.raw
    terminal.press("\x03")
    terminal.ends()
    terminal = Terminal(f"http://127.0.0.1:{port}")
    terminal.shows("fraud")
    os.kill(terminal.pid, signal.SIGTERM)
    terminal.ends()
    server.shutdown()


a_real_server()
a_hostile_server_that_goes_away_and_comes_back()
print("ok")
