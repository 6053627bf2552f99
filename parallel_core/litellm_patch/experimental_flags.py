"""The flag of the proposal. Loaded as ``litellm.experimental_flags``."""

import os
import sys

ENABLE_PARALLEL_ACOMPLETIONS: bool = os.environ.get(
    "LITELLM_ENABLE_PARALLEL_ACOMPLETIONS", ""
).strip().lower() in ("1", "true", "yes", "on")
"""Whether the methods of Routers may be used, read from the environment when this module is
loaded or reloaded. The methods look at ``litellm.router.ENABLE_PARALLEL_ACOMPLETIONS``."""

VALUE_IN_ENVIRONMENT = ENABLE_PARALLEL_ACOMPLETIONS
"""What was read: the flag itself may have been patched."""

if "litellm.router" in sys.modules:
    vars(sys.modules["litellm.router"])["ENABLE_PARALLEL_ACOMPLETIONS"] = (
        ENABLE_PARALLEL_ACOMPLETIONS
    )
