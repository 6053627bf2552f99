"""A run that may open a few more files than are open: ``too_many_open_files.py FOLDER ADDRESS``.

It prints the kinds of its failures as they come, and how the run has ended.
"""

from __future__ import annotations

import asyncio
import functools
import resource
import sys
from pathlib import Path
from typing import Any

import litellm
from litellm.router import Router

from parallel_core import run_file
from parallel_core.control import retry


def main(folder: Path, address: str) -> None:
    kinds: set[str] = set()
    module: Any = retry
    classify = module.classify

    def classify_and_note(error: BaseException) -> Any:
        failure = classify(error)
        if failure.kind not in kinds:
            kinds.add(failure.kind)
            print(failure.kind, flush=True)
        return failure

    module.classify = classify_and_note
    litellm.suppress_debug_info = True
    parameters = {"model": "openai/fast", "api_base": address, "api_key": "none"}
    router = Router([{"model_name": "fast", "litellm_params": parameters}])
    lowered: list[object] = []

    def lower_the_limit(progress: object) -> None:
        if lowered:
            return
        lowered.append(progress)
        few = len(list(Path("/proc/self/fd").iterdir())) + 8
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))

    async def run() -> Any:
        run = functools.partial(
            run_file, router, folder / "in.jsonl", folder / "out.jsonl", concurrency=16
        )
        await run(limit=1)  # what is imported, and a new output, need files as well
        return await run(on_progress=lower_the_limit)

    summary = asyncio.run(run())
    print(summary.ending, summary.succeeded, summary.failed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
