"""A server that speaks OpenAI's chat completions API and answers with made-up text.

**Its answers are synthetic**: there is no model behind it, and nothing it says has to do with the
question, but for one: a prompt that asks for ``positive or negative`` is answered by counting
words of praise and of blame. It is there to try out and to test clients, with latencies and faults
as they happen with real providers, but the same ones on every run: what happens to the n-th request
of a model depends only on the seed, on the model and on n (requests are numbered as they arrive in
full).

It listens on 127.0.0.1 only, and logs nothing. Any API key will do, unless there is to be
trouble with it: :class:`Trouble` has what real providers do on bad days, for all requests or for
those of a model or a key. Its paths are

- ``POST /v1/chat/completions``: an answer, or with ``"stream": true`` a stream of server-sent
  events. These parameters have their effect: ``response_format`` (JSON, which fits the schema),
  ``tools``, ``tool_choice`` and ``parallel_tool_calls`` (calls with arguments that fit the
  parameters; after a tool's message comes a text), ``n``, ``logprobs`` and ``top_logprobs``,
  ``stop``, ``max_tokens`` and ``max_completion_tokens``. All else is accepted and has none.
  A field ``"demo"`` in the body decides for this request what is otherwise drawn:
  ``{"latency": 0.1, "chunk_gap": 0.0, "fault": "hang", "reply": "text"}``, each of them optional;
  with ``"tool_arguments": "text"`` it is a call of the tool ``"demo"``, and with
  ``"usage": false`` it has no usage; with ``"held": true`` it waits while the server holds;
  ``latency`` (to the answer, or to the first token of a stream) and ``chunk_gap`` are in seconds,
  ``fault`` is ``none``, or a kind of :class:`Trouble` but ``away``. With litellm:
  ``acompletion(…, extra_body={"demo": {…}})``.
- ``GET /v1/models`` and ``GET /v1/models/{id}``: the models' names.
- ``GET /requests``: the newest requests with their answers, where the setting ``keep_requests``
  says how many are kept; :class:`RecordedRequest` describes them.
- ``GET /stats``: the counts that :class:`DemoServerStats` describes, as JSON.
- ``POST /stats/reset``: counts from nothing again, forgets kept requests, and starts the numbers n
  again, so that the next requests see the same latencies and faults as the first ones did.
- ``POST /capacity``: ``{"capacity": 16}`` or ``{"capacity": null}`` changes the capacity of the
  settings from now on; requests in flight go on.
- ``POST /trouble``: ``{"trouble": [{"kind": "bad_key", "key": "sk-1"}, …]}`` makes other trouble
  from now on; :class:`Trouble` describes it. An empty list ends it.
- ``POST /away``: ``{"seconds": 5}`` closes every connection and refuses new ones for so long.
- ``POST /hold`` and ``POST /release``: from the one to the other, the requests with
  ``"held": true`` wait, be they in flight already or not; whatever has to happen to them happens
  when they are released. So tests are ordered by what has happened, and not by latencies.

Other paths and methods are answered with 404 and 405, and errors have OpenAI's form.

``python -m parallel_core.demo_server --port 0`` runs it until SIGINT or SIGTERM. The first line of
its output is a JSON object with its address: ``{"url": "http://127.0.0.1:…/v1", …}``. In Python
there are :class:`DemoServer` (in the running asyncio loop), :class:`DemoServerThread` (for trio,
and for code without a loop) and :func:`demo_server_process`.
"""

from typing import TYPE_CHECKING

from .recording import RecordedRequest
from .settings import DemoServerSettings
from .stats import DemoModelStats, DemoServerStats
from .trouble import TROUBLE_KINDS, Trouble, TroubleKind

if TYPE_CHECKING:
    from .app import DemoServer
    from .servers import DemoServerProcess, DemoServerThread, demo_server_process

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
    """Import a server when it is asked for: with aiohttp that takes a third of a second."""
    if name == "DemoServer":
        from .app import DemoServer

        return DemoServer
    if name in __all__:
        from . import servers

        return getattr(servers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
