"""Exit code 0 where the server of this container can answer."""

import http.client
import os
import sys

PORT = int(os.environ.get("HEALTHCHECK_PORT", "8000"))

connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=4)  # asks no proxy
try:
    connection.request("GET", "/health")
    status = connection.getresponse().status
except OSError as error:
    sys.exit(f"no answer: {error}")
sys.exit(0 if status == 200 else f"status {status}")
