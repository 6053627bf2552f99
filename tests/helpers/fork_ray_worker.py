"""What Ray starts in place of a worker: it has one forked, and stays for as long as that runs.

A script of its own, with few imports, for it is a whole Python each time.
"""

import json
import os
import socket
import sys

if __name__ == "__main__":
    with socket.socket(socket.AF_UNIX) as forks:
        forks.connect(os.environ["FORKS_OF_RAY_WORKERS"])
        request = json.dumps({"arguments": sys.argv[1:], "environment": dict(os.environ)})
        socket.send_fds(forks, [request.encode()], [0, 1, 2])
        sys.exit(int(forks.recv(16) or b"1"))
