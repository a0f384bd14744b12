"""Ends with 0 if the gateway of this container is ready, whether it speaks TLS or not."""

import os
import ssl
import sys
import urllib.request
from contextlib import suppress

PORT = os.environ.get("PERSONAPLEX_PORT", "8998")

# The certificate is for another name than that of the loopback interface.
unverified = ssl.create_default_context()
unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
for scheme in ("http", "https"):
    with suppress(OSError):
        urllib.request.urlopen(f"{scheme}://127.0.0.1:{PORT}/readyz", timeout=2, context=unverified)  # noqa: S310 - its own
        sys.exit(0)
sys.exit(f"nobody is ready at port {PORT}")
