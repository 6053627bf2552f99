"""Opens recipes that it reads, and asks the Router of each; tells what came of it."""

import asyncio
import json
import os
import pickle
import sys

import parallel_core
from parallel_core.config.router_members import deployments

opened = {}
for name, packed in pickle.load(sys.stdin.buffer).items():
    recipe = pickle.loads(packed)
    with recipe.open() as router:
        models = [deployment["model_name"] for deployment in deployments(router)]
        request = {"model": models[0], "messages": [{"role": "user", "content": "?"}]}
        (result,) = asyncio.run(parallel_core.parallel_acompletions(router, [request]))
        opened[name] = {
            "answered": result.ok,
            "models": models,
            "parameters": deployments(router)[0]["litellm_params"],
            "retries": router.num_retries,
            "variable": os.environ.get("RECIPE_SET"),
        }
print(json.dumps(opened, default=str))
