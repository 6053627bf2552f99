"""A server with OpenAI's chat completions API that answers with synthetic text.

**Its answers are synthetic**: there is no model behind it, and the answers have nothing to do with
the question. There is one exception: for a prompt that asks for ``positive or negative``, it counts
words of praise and of blame. The server is for trying out and testing clients. It has the latencies
and faults of real providers, but the same ones on every run: what happens to the n-th request of a
model depends only on the seed, the model and n (requests are numbered when they have arrived in
full).

It listens on 127.0.0.1 only, and logs nothing. It accepts any API key, except for keys with
trouble: :class:`Trouble` describes failures of real providers, for all requests or for those of a
model or a key. Its paths are

- ``POST /v1/chat/completions``: an answer, or with ``"stream": true`` a stream of server-sent
  events. These parameters have an effect: ``response_format`` (JSON that fits the schema),
  ``tools``, ``tool_choice`` and ``parallel_tool_calls`` (calls with arguments that fit the
  parameters; a text after a tool's message), ``n``, ``logprobs`` and ``top_logprobs``, ``stop``,
  ``max_tokens`` and ``max_completion_tokens``. All other parameters are accepted and ignored.
  A field ``"demo"`` in the body sets for this request what is otherwise drawn at random:
  ``{"latency": 0.1, "chunk_gap": 0.0, "fault": "hang", "reply": "text"}``, each of them optional.
  With ``"tool_arguments": "text"`` the answer is a call of the tool ``"demo"``, with
  ``"usage": false`` it has no usage, and with ``"held": true`` it waits while the server holds.
  ``latency`` (to the answer, or to the first token of a stream) and ``chunk_gap`` are in seconds.
  ``fault`` is ``none``, or a kind of :class:`Trouble` except ``away``. With litellm:
  ``acompletion(…, extra_body={"demo": {…}})``.
- ``POST /v1/embeddings``, ``/v1/responses``, ``/v1/completions``, ``/v1/moderations`` and
  ``/v1/rerank``: answers with the same latencies, troubles, counts and field ``"demo"``, and
  without streams. Vectors depend on the text alone; a text with the word ``unsafe`` is flagged;
  documents are ranked by the words that they share with the query.
- ``GET /v1/models`` and ``GET /v1/models/{id}``: the models' names.
- ``GET /requests``: the newest requests with their answers. The setting ``keep_requests`` limits
  their number; :class:`RecordedRequest` describes them.
- ``GET /stats``: the counts that :class:`DemoServerStats` describes, as JSON.
- ``POST /stats/reset``: sets the counts to 0, forgets kept requests, and numbers requests from 1
  again, so that the next requests have the same latencies and faults as the first ones had.
- ``POST /capacity``: ``{"capacity": 16}`` or ``{"capacity": null}`` changes the capacity of the
  settings from now on. Requests in flight are not affected.
- ``POST /trouble``: ``{"trouble": [{"kind": "bad_key", "key": "sk-1"}, …]}`` replaces the trouble
  from now on; :class:`Trouble` describes it. An empty list ends all trouble.
- ``POST /away``: ``{"seconds": 5}`` closes every connection and refuses new ones for this time.
- ``POST /hold`` and ``POST /release``: between the two, requests with ``"held": true`` wait before
  their latency. Their answers or faults come after the release. So tests can order events without
  relying on latencies.

Other paths and methods are answered with 404 and 405. Errors have OpenAI's form.

``python -m parallel_core.demo_server --port 0`` runs the server until SIGINT or SIGTERM. The first
line of its output is a JSON object with its address: ``{"url": "http://127.0.0.1:…/v1", …}``. In
Python there are :class:`DemoServer` (in the running asyncio loop), :class:`DemoServerThread` (for
trio, and for code without a loop) and :func:`demo_server_process`.
"""

from typing import TYPE_CHECKING

from .recording import RecordedRequest
from .settings import DemoServerSettings
from .stats import DemoModelStats, DemoServerStats
from .trouble import TROUBLE_KINDS, Trouble, TroubleKind

if TYPE_CHECKING:
    from .app import DemoServer
    from .server_process import DemoServerProcess, demo_server_process
    from .server_thread import DemoServerThread

__all__ = [
    "TROUBLE_KINDS",
    "DemoModelStats",
    "DemoServer",
    "DemoServerProcess",
    "DemoServerSettings",
    "DemoServerStats",
    "DemoServerThread",
    "RecordedRequest",
    "Trouble",
    "TroubleKind",
    "demo_server_process",
]


def __getattr__(name: str) -> object:
    """Import a server class on first access: with aiohttp, the import takes a third of a second."""
    if name == "DemoServer":
        from .app import DemoServer

        return DemoServer
    if name == "DemoServerThread":
        from .server_thread import DemoServerThread

        return DemoServerThread
    if name in __all__:
        from . import server_process

        return getattr(server_process, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
