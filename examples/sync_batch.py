"""Synchronous code, a notebook included: a list of results, in the order of the requests."""

from litellm import Router

from parallel_core import parallel_completions
from parallel_core.demo_server import DemoServerThread

with DemoServerThread() as server:  # answers with made-up text
    deployment = {"model": "openai/fast", "api_base": server.url, "api_key": "none"}
    router = Router(model_list=[{"model_name": "fast", "litellm_params": deployment}])
    results = parallel_completions(
        router,
        [
            {"model": "fast", "messages": [{"role": "user", "content": f"Question {number}"}]}
            for number in range(50)
        ],
        concurrency=16,
        preserve_order=True,
    )
    for result in results:
        print(result.index, result.unwrap().choices[0].message.content)
