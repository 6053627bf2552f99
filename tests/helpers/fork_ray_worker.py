"""Ask for a forked worker, and stay for as long as it runs. Ray starts this in place of a worker.

It is a script with few imports, since Ray starts a new Python for each worker.
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
