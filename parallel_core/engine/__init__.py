"""What the engine is made of: the handle, the source, the backlog, waiting, timers, the guest run.

:mod:`parallel_core.nursery_engine` puts them together. Trio and asyncio differ in their backend.
"""
