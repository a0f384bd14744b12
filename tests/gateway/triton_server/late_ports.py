"""A fake tritonserver that opens its ports one after another, in the order of the first argument."""

from __future__ import annotations

import http.server
import re
import sys
import threading
import time

LATE_S = 0.3


class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v2/health/ready" else 404)
        self.end_headers()


if __name__ == "__main__":
    ports = dict(re.findall(r"--(\w+)-port=(\d+)", " ".join(sys.argv)))
    for service in sys.argv[1].split(","):
        time.sleep(LATE_S)
        serving = http.server.ThreadingHTTPServer(("127.0.0.1", int(ports[service])), Ready)
        threading.Thread(target=serving.serve_forever, daemon=True).start()
    time.sleep(60)
