"""Writes values whose classes and functions are of a main module, packed."""

import sys

from parallel_core.ray_engine.remote_values import pack_exception, pack_request, pack_response


class Mine(Exception):
    def __init__(self, *, number: int) -> None:
        super().__init__("mine")
        self.number = number


def double(number: int) -> int:
    return 2 * number


for packed in (pack_request({"tool": double}), pack_response(Mine), pack_exception(Mine(number=3))):
    sys.stdout.write(packed.hex() + "\n")
