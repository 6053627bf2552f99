"""A web service on trio: one request fans out to many LLM calls, and they end when its client goes.

    hypercorn --worker-class trio examples.trio_web:app
    curl -d '{"questions": ["Why is the sky blue?", "Why is grass green?"]}' \
        -H 'Content-Type: application/json' http://127.0.0.1:8000/ask

The calls go to OpenAI; with ``OPENAI_BASE_URL`` to another server, for instance the one that
``parallel-core demo-server --model gpt-4o-mini`` starts.
"""

from litellm import Router
from quart import request
from quart_trio import QuartTrio

from parallel_core import parallel_acompletions

app = QuartTrio(__name__)
router = Router(
    model_list=[{"model_name": "small", "litellm_params": {"model": "openai/gpt-4o-mini"}}]
)


@app.post("/ask")
async def ask() -> dict[str, list[str | None]]:
    body = await request.get_json()
    # When the client disconnects, Quart cancels this function; the batch then cancels every call
    # that is in flight, and its connection to the provider is closed.
    results = await parallel_acompletions(
        router,
        [
            {"model": "small", "messages": [{"role": "user", "content": question}]}
            for question in body["questions"]
        ],
        concurrency=16,
        preserve_order=True,
    )
    return {
        "answers": [
            result.response.choices[0].message.content if result.ok else None for result in results
        ]
    }
