"""The flag of the original proposal. Loaded as ``litellm.experimental_flags``."""

import os
import sys

ENABLE_PARALLEL_ACOMPLETIONS: bool = os.environ.get(
    "LITELLM_ENABLE_PARALLEL_ACOMPLETIONS", ""
).strip().lower() in ("1", "true", "yes", "on")
"""True if the parallel methods of Routers may be used. Read from the environment when this module
is loaded or reloaded. The methods check ``litellm.router.ENABLE_PARALLEL_ACOMPLETIONS``."""

VALUE_IN_ENVIRONMENT = ENABLE_PARALLEL_ACOMPLETIONS
"""Value that was read from the environment. The flag itself may have been patched since."""

if "litellm.router" in sys.modules:
    vars(sys.modules["litellm.router"])["ENABLE_PARALLEL_ACOMPLETIONS"] = (
        ENABLE_PARALLEL_ACOMPLETIONS
    )
