"""Exit with 0 if the gateway in this container is ready, with or without TLS."""

import os
import ssl
import sys
import urllib.request
from contextlib import suppress

PORT = os.environ.get("PERSONAPLEX_PORT", "8998")

# The certificate is not valid for the loopback interface.
unverified = ssl.create_default_context()
unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
for scheme in ("http", "https"):
    with suppress(OSError):
        urllib.request.urlopen(f"{scheme}://127.0.0.1:{PORT}/readyz", timeout=2, context=unverified)  # noqa: S310 - a fixed URL
        sys.exit(0)
sys.exit(f"the gateway at port {PORT} is not ready")
