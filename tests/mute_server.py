"""A server that answers nothing, and counts who comes."""

import socket
import threading


class MuteServer:
    """Accepts every connection and closes it."""

    def __init__(self) -> None:
        self.visitors = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.visitors += 1
            connection.close()
