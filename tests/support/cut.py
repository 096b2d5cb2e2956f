"""A line to a server that can be cut."""

import contextlib
import socket
import threading


class Line:
    """Forwards connections from a port of this machine to a server, until it is cut: then new ones are refused, and those there are end.

    `silent` takes connections, old and new, and says nothing more on them: a server behind a firewall.
    """

    def __init__(self, host: str, port: int):
        self.server = (host, port)
        self.port = 0
        self.connections: list[socket.socket] = []
        self.silence = threading.Event()
        self.lock = threading.Lock()
        self.open()

    def open(self):
        self.silence.clear()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._end_all()

    def silent(self):
        self.silence.set()

    def _end_all(self):
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.connections.clear()

    def _accept(self, listener: socket.socket):
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            callee = socket.create_connection(self.server)
            with self.lock:
                self.connections += [caller, callee]
            for source, sink in ((caller, callee), (callee, caller)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket):
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if not self.silence.is_set():
                    sink.sendall(data)
        for connection in (source, sink):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
