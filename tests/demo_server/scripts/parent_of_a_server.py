"""Start a demo server in a process, print its address, and wait for a line that never comes."""

from __future__ import annotations

from parallel_core.demo_server import demo_server_process

if __name__ == "__main__":
    with demo_server_process() as server:
        print(server.url, flush=True)
        input()
