"""Completes a table, and leaves all that it has opened to the end of the interpreter."""

import sys
import warnings
from typing import Any

import numpy as np

from parallel_core import ParallelRouter
from parallel_core.ray_engine.ray_data import ParallelCompletions

warnings.simplefilter("default", ResourceWarning)
url, key = sys.argv[1:]


def make() -> Any:
    parameters = {"model": "openai/fast", "api_base": url, "api_key": key}
    return ParallelRouter(model_list=[{"model_name": "fast", "litellm_params": parameters}])


complete = ParallelCompletions(make, model="fast")
print(complete({"prompt": np.array(["a"])})["error"][0])
